"""MCAP files, through the `mcap` package's records.

Its reader keeps the messages of all chunks that overlap in time, and decompresses whatever a chunk announces; chunks
are therefore taken one by one here, unpacked to no more than they announce, and merged by log time within a bound.
Format: https://mcap.dev/spec
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import struct
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

from fcnopt.media.logs.base import FAULTS, Bounded, Log, LogError, Logged, Topic
from fcnopt.media.logs.messages import KINDS, Parser, normalized_kind, parser_for
from fcnopt.media.logs.packages import require
from fcnopt.media.logs.unpacking import MOST_BYTES, unpacked

_MAGIC = b"\x89MCAP0\r\n"
_HEAD = struct.Struct("<BQ")  # of every record: opcode, length
_SMALLEST_MESSAGE = 31  # bytes
_RECOVER = "save what is whole (mcap recover IN -o OUT), or copy the file again"


class McapLog(Log):
    """An MCAP file with image messages of ROS 2, ROS 1 or Foxglove's protobuf schemas.

    With an index, chunks without the topic are skipped, and messages come by log time. Without one the file is read
    from end to end, and messages come as they were written.

    Raises:
        LogError: It is no MCAP file, is cut off, or its summary is damaged.
        MediaError: A package is missing.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._mcap = require("mcap.reader"), require("mcap.records"), require("mcap.stream_reader")
        self._channels: dict[int, Any] = {}
        self._schemas: dict[int, Any] = {}
        self._chunks: list[Any] = []
        counts: Counter[int] = Counter()
        with self._opened() as file:
            if not self._read_summary(file, counts):
                self._survey(file, counts)
        self._parsers: dict[int, Parser] = {}
        self.topics, self.others = self._sorted(counts)

    def messages(self, topic: str) -> Iterator[Logged]:
        """The messages of a topic; see `Log.messages`."""
        ids = {number for number, channel in self._channels.items() if channel.topic == topic}
        with self._opened() as file:
            records = self._merged(file, ids) if self._chunks else self._in_file_order(file)
            for record in records:
                if record.channel_id in ids:
                    yield Logged(record.log_time, partial(self._parser(record.channel_id), record.data))

    @contextlib.contextmanager
    def _opened(self) -> Iterator[Bounded]:
        """The file, checked for its marks at both ends; what parsers raise within becomes `LogError`."""
        try:
            with self.path.open("rb") as raw:
                size = raw.seek(0, 2)
                file = Bounded(raw, size)
                file.seek(0)
                if file.read(min(size, len(_MAGIC))) != _MAGIC:
                    raise LogError("this is not an MCAP file")
                file.seek(max(0, size - len(_MAGIC)))
                if size < 2 * len(_MAGIC) or file.read() != _MAGIC:
                    raise LogError(f"the file is cut off after {size} bytes: its end mark is missing", _RECOVER)
                file.seek(0)
                yield file
        except (*FAULTS, require("mcap.exceptions").McapError) as error:
            raise LogError(f"the log cannot be read: {type(error).__name__}: {error}", _RECOVER) from error

    def _read_summary(self, file: Bounded, counts: Counter[int]) -> bool:
        """Take what the summary says; False where it is missing or says too little."""
        summary = self._mcap[0].SeekingReader(file, record_size_limit=None).get_summary()
        if summary is None or summary.statistics is None:
            return False
        statistics = summary.statistics
        if not summary.channels or len(summary.chunk_indexes) != statistics.chunk_count:
            return False
        file.seek(0, 2)
        held = max(file.tell(), sum(min(chunk.uncompressed_size, MOST_BYTES) for chunk in summary.chunk_indexes))
        if sum(statistics.channel_message_counts.values()) * _SMALLEST_MESSAGE > held:
            raise LogError(f"{statistics.message_count} messages are announced, more than it can hold", _RECOVER)
        counts.update(statistics.channel_message_counts)
        self._channels, self._schemas, self._chunks = summary.channels, summary.schemas, summary.chunk_indexes
        return True

    def _survey(self, file: Bounded, counts: Counter[int]) -> None:
        """Read the whole file for what its summary does not say."""
        for record in self._in_file_order(file):
            counts[record.channel_id] += 1

    def _in_file_order(self, file: Bounded) -> Iterator[Any]:
        """Every message; channels and schemas are taken on the way."""
        records, streams = self._mcap[1:]
        file.seek(len(_MAGIC))
        while True:
            opcode, length = _HEAD.unpack(file.read(_HEAD.size))
            start = file.tell()
            if opcode in (0x0F, 0x02):  # end of data
                return
            if opcode in (0x03, 0x04, 0x05, 0x06):  # schema, channel, message, chunk
                _check_length(length)
                body = Bounded(BytesIO(file.read(length)), length)
                stream = streams.ReadDataStream(body)
                if opcode == 0x06:
                    yield from self._learned(self._broken_up(records.Chunk.read(stream)))
                elif opcode == 0x05:
                    yield from self._learned([records.Message.read(stream, length)])
                else:
                    list(self._learned([(records.Schema if opcode == 0x03 else records.Channel).read(stream)]))
            file.seek(start + length)

    def _learned(self, found: list[Any]) -> Iterator[Any]:
        """The messages among records; the others are remembered."""
        for record in found:
            if isinstance(record, self._mcap[1].Message):
                yield record
            elif isinstance(record, self._mcap[1].Channel):
                self._channels.setdefault(record.id, record)
            else:
                self._schemas.setdefault(record.id, record)

    def _broken_up(self, chunk: Any) -> list[Any]:
        plain = replace(chunk, compression="", data=unpacked(chunk.data, chunk.compression, chunk.uncompressed_size))
        return list(self._mcap[2].breakup_chunk(plain, validate_crc=True))

    def _merged(self, file: Bounded, ids: set[int]) -> Iterator[Any]:
        """The messages of some channels by log time; those of a chunk wait while a later chunk can be before them."""
        wanted = [c for c in self._chunks if not c.message_index_offsets or ids & c.message_index_offsets.keys()]
        wanted.sort(key=lambda chunk: (chunk.message_start_time, chunk.chunk_start_offset))
        waiting: list[tuple[int, int, Any]] = []
        number, held = itertools.count(), 0
        for index in wanted:
            while waiting and waiting[0][0] < index.message_start_time:
                record = heapq.heappop(waiting)[2]
                held -= len(record.data)
                yield record
            for record in self._broken_up(self._chunk_at(file, index)):
                if isinstance(record, self._mcap[1].Message) and record.channel_id in ids:
                    heapq.heappush(waiting, (record.log_time, next(number), record))
                    held += len(record.data)
            if held > MOST_BYTES:
                raise LogError("its chunks overlap in time by more than 1 GiB", "sort it: mcap sort IN -o OUT")
        while waiting:
            yield heapq.heappop(waiting)[2]

    def _chunk_at(self, file: Bounded, index: Any) -> Any:
        file.seek(index.chunk_start_offset)
        opcode, length = _HEAD.unpack(file.read(_HEAD.size))
        if opcode != 0x06:
            raise LogError(f"no chunk at byte {index.chunk_start_offset}, where the index has one", _RECOVER)
        _check_length(length)
        return self._mcap[1].Chunk.read(self._mcap[2].ReadDataStream(file))

    def _kind(self, channel: Any) -> str:
        schema = self._schemas.get(channel.schema_id)
        return "" if schema is None else normalized_kind(schema.name)

    def _parser(self, number: int) -> Parser:
        channel = self._channels[number]
        if number not in self._parsers:
            schema = self._schemas[channel.schema_id]
            self._parsers[number] = parser_for(self._kind(channel), channel.message_encoding, schema.data)
        return self._parsers[number]

    def _sorted(self, counts: Counter[int]) -> tuple[tuple[Topic, ...], tuple[str, ...]]:
        """Topics with images, and the names of the others."""
        images: dict[str, Topic] = {}
        others = set()
        for number, channel in sorted(self._channels.items()):
            kind, count = self._kind(channel), counts[number]
            if kind not in KINDS:
                others.add(channel.topic)
                continue
            before = images.get(channel.topic)
            images[channel.topic] = Topic(channel.topic, kind, count + (before.messages if before else 0))
        return tuple(images[name] for name in sorted(images)), tuple(sorted(others - images.keys()))


def _check_length(length: int) -> None:
    if length > MOST_BYTES:
        raise LogError(f"a record of {length} bytes is announced, more than {MOST_BYTES >> 30} GiB", _RECOVER)
