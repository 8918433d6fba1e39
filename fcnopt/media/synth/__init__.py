"""The embedded demo scene: a synthetic driving clip with exact labels and depth."""

from fcnopt.media.synth.clip import (
    CALIBRATION_SEED,
    DEMO_SEED,
    FIRST_TRAINING_SEED,
    SceneOptions,
    SynthClip,
)

__all__ = ["CALIBRATION_SEED", "DEMO_SEED", "FIRST_TRAINING_SEED", "SceneOptions", "SynthClip"]
