"""Clips, label maps and the embedded demo scene."""

from fcnopt.media.clips import Clip, Frame, fit_frame, list_clips, open_clip, restore_labels

__all__ = ["Clip", "Frame", "fit_frame", "list_clips", "open_clip", "restore_labels"]
