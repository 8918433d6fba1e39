"""Parts of the C++ library against Python's, under the address and undefined-behaviour sanitizers."""

from __future__ import annotations

import hashlib
import io
import json
import random
import string
import zipfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fcnopt.backends import cpurates, openvino_mode
from fcnopt.backends.machine import int8_saturates, isa_of
from fcnopt.bundle import Bundle, finish
from fcnopt.errors import BackendError
from fcnopt.manifest import Manifest
from fcnopt.selftest import SELFTEST, write_selftest
from tests.deployment.conftest import records, run_program


def asked(native: Path, part: str, texts: Sequence[bytes], *words: str) -> list[str]:
    """What a part of the library says of each text."""
    code, said, errors = run_program(native / "parts", part, *words, given=records(texts))
    assert (code, errors) == (0, "")
    lines = said.split("\n")[:-1]
    assert len(lines) == len(texts)
    return lines


def test_sha256_is_the_standards_of_messages_of_any_length(native: Path) -> None:
    rng = np.random.default_rng(1)
    texts = [b"", b"abc", b"a" * 1_000_000] + [rng.bytes(n) for n in (*range(1, 130), 4096, 65537)]
    hashes = [hashlib.sha256(text).hexdigest() for text in texts]
    assert hashes[1] == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-4, example 1
    assert asked(native, "sha256", texts) == [f"ok {value} {value}" for value in hashes]


class _Strict(json.JSONDecoder):
    """Python's JSON, without what RFC 8259 does not have."""

    def __init__(self) -> None:
        def no_constant(name: str) -> Any:
            raise ValueError(name)

        def number(text: str) -> float:
            value = float(text)
            if value in (float("inf"), -float("inf")):
                raise ValueError(text)
            return value

        def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
            if len({name for name, _ in pairs}) != len(pairs):
                raise ValueError("a name comes twice")
            return dict(pairs)

        super().__init__(
            parse_constant=no_constant, parse_float=number, parse_int=number, object_pairs_hook=once, strict=True
        )


def _expected(text: bytes) -> Any:
    """What a strict reader makes of a text; `ValueError` where it refuses."""
    value = _Strict().decode(text.decode("utf-8"))
    _check(value, 0)
    return value


def _check(value: Any, depth: int) -> None:
    if depth > 32:
        raise ValueError("deep")
    if isinstance(value, str):
        value.encode("utf-8")  # refuses lone surrogates
    elif isinstance(value, dict):
        for name, item in value.items():
            name.encode("utf-8")
            _check(item, depth + 1)
    elif isinstance(value, list):
        for item in value:
            _check(item, depth + 1)


def _joined(value: Any) -> Any:
    """The answer of `parts`, whose strings are written a byte a character."""
    if isinstance(value, str):
        return value.encode("latin-1").decode("utf-8")
    if isinstance(value, dict):
        return {_joined(name): _joined(item) for name, item in value.items()}
    return [_joined(item) for item in value] if isinstance(value, list) else value


def _agrees(text: bytes, line: str) -> bool:
    """Whether the library and Python agree on a text."""
    try:
        expected = _expected(text)
    except (ValueError, RecursionError):
        return line.startswith("refused ")
    return line.startswith("ok ") and _joined(json.loads(line[3:])) == expected


_EDGES = [
    b"", b" ", b"[", b"]", b"{", b"[1,]", b"{,}", b'{"a":1,}', b'{"a" 1}', b'{"a":1,"a":2}', b'{"a":1,"\\u0061":2}',
    b"nul", b"nulll", b"null null", b"NaN", b"Infinity", b"-Infinity", b"1e999", b"-1e999", b"1e-999", b"5e-324",
    b"-0", b"01", b"1.", b".5", b"1e", b"1e+", b"+1", b"-", b"0x1", b"1_0", b"123456789012345678901234567890", b"1E+2",
    b"1e05", b'"', b'"\\"', b'"\\x"', b'"\\u12"', b'"\\ud800"', b'"\\ud800\\u0041"', b'"\\udc00"',
    b'"\\ud83d\\ude00"', b'"a\nb"', b'"\\u0000"', b'"\x00"', b'"\x7f"', b'"\xc3\xa9"',
    b'"\xc0\x80"', b'"\xed\xa0\x80"', b'"\xf4\x90\x80\x80"',
    b'"\xf0\x9f\x98\x80"', b'"\xe2\x82"', b'"\xff"', b"\xef\xbb\xbf[]", b"\x0c[]", b"\xa0[]", b"[1]x", b"/**/1", b"'a'",
    b"[" * 32 + b"]" * 32, b"[" * 33 + b"]" * 33, b"[" * 34 + b"]" * 34, b"[" * 100_000, b'{"a":' * 50_000,
    b"[" + b"0," * 100_000 + b"0]",
]  # fmt: skip


def _chance(seed: int) -> random.Random:
    return random.Random(seed)  # noqa: S311  (test data, no secrets)


def _random_value(chance: random.Random, depth: int = 0) -> Any:
    kind = chance.randrange(5 if depth > 3 else 7)
    if kind == 5:
        return [_random_value(chance, depth + 1) for _ in range(chance.randrange(4))]
    if kind == 6:
        return {_random_text(chance): _random_value(chance, depth + 1) for _ in range(chance.randrange(4))}
    plain = [None, True, False, chance.uniform(-1, 1) * 10 ** chance.randrange(-30, 30), _random_text(chance)]
    return plain[kind]


def _random_text(chance: random.Random) -> str:
    return "".join(chance.choice(string.printable + "äß€😀\u0000\u2028") for _ in range(chance.randrange(8)))


def _mutated(chance: random.Random, text: bytes) -> bytes:
    data = bytearray(text)
    for _ in range(chance.randrange(1, 4)):
        place = chance.randrange(len(data) + 1)
        change = chance.randrange(3)
        if change == 0 and data:
            data[place % len(data)] = chance.choice(b'{}[]",:\\u0e-+.\xc3\xff\x00 ') if chance.random() < 0.7 else 0x80
        elif change == 1:
            data[place:place] = bytes([chance.randrange(256)])
        else:
            del data[place : place + chance.randrange(1, 9)]
    return bytes(data)


def test_json_is_read_as_python_reads_it_and_refused_where_the_standard_does(native: Path) -> None:
    chance = _chance(2)
    texts = list(_EDGES)
    for _ in range(2000):
        whole = json.dumps(_random_value(chance), ensure_ascii=chance.random() < 0.5).encode()
        texts += [whole, _mutated(chance, whole)]
    lines = asked(native, "json", texts)
    assert [text[:80] for text, line in zip(texts, lines, strict=True) if not _agrees(text, line)] == []
    assert sum(line.startswith("refused") for line in lines) > 500, "too little was refused to prove anything"
    assert sum(line.startswith("ok") for line in lines) > 2000


def test_more_values_than_any_manifest_has_are_refused(native: Path) -> None:
    lines = asked(native, "json", [b"[" + b"0," * (1 << 18) + b"0]", b"[" + b"0," * ((1 << 18) - 3) + b"0]"])
    assert lines[0].startswith("refused too many values")
    assert lines[1].startswith("ok [0,0")


def test_a_mutated_manifest_is_read_or_refused_but_never_more(native: Path, int8_bundle: Path) -> None:
    chance = _chance(3)
    whole = (int8_bundle / "manifest.json").read_bytes()
    lines = asked(native, "manifest", [whole] + [_mutated(chance, whole) for _ in range(500)])
    assert lines[0] == f"ok {int8_bundle.name}"
    assert sum(line.startswith("refused it: cannot be used") for line in lines) > 50


def _npz(file: Path, **arrays: NDArray[Any]) -> bytes:
    np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
    return file.read_bytes()


@pytest.fixture
def known(rng: np.random.Generator) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    return rng.integers(0, 256, (1, 10, 12, 3), np.uint8), rng.integers(0, 5, (1, 10, 12), np.uint8)


def test_the_known_answer_is_read_as_numpy_wrote_it(
    native: Path, tmp_path: Path, known: tuple[NDArray[np.uint8], NDArray[np.uint8]]
) -> None:
    frame, labels = known
    write_selftest(tmp_path / SELFTEST, frame, labels)
    stored = io.BytesIO()
    np.savez(stored, labels=labels, frame=frame)
    lines = asked(native, "npz", [(tmp_path / SELFTEST).read_bytes(), stored.getvalue()], "10", "12")
    assert lines == [f"ok {hashlib.sha256(frame.tobytes() + labels.tobytes()).hexdigest()}"] * 2


def test_other_arrays_and_archives_are_refused(
    native: Path, tmp_path: Path, known: tuple[NDArray[np.uint8], NDArray[np.uint8]]
) -> None:
    frame, labels = known
    file = tmp_path / "x.npz"
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("frame.npy", bytes(1 << 26))
    with_text = io.BytesIO()
    np.savez(with_text, frame=frame, labels=labels)
    cases = {
        "is not uint8 (1, 10, 12, 3)": _npz(file, frame=frame[:, :9], labels=labels),
        "frame is not uint8": _npz(file, frame=np.asfortranarray(frame), labels=labels),
        "labels is not uint8": _npz(file, frame=frame, labels=labels.astype(np.int8)),
        "has no labels.npy": _npz(file, frame=frame),
        "frame.npy is larger": bomb.getvalue(),
        "is not a ZIP": with_text.getvalue() + b"\n",
    }
    lines = asked(native, "npz", list(cases.values()), "10", "12")
    for message, line in zip(cases, lines, strict=True):
        assert line.startswith("refused it: ")
        assert message in line


def test_a_mutated_archive_gives_the_same_arrays_or_none(
    native: Path, tmp_path: Path, known: tuple[NDArray[np.uint8], NDArray[np.uint8]]
) -> None:
    frame, labels = known
    whole = _npz(tmp_path / "x.npz", frame=frame, labels=labels)
    chance = _chance(4)
    texts = [whole[:size] for size in range(0, len(whole), 7)]
    for _ in range(3000):
        data = bytearray(whole)
        for _ in range(chance.randrange(1, 4)):
            data[chance.randrange(len(data))] = chance.choice((0, 1, 0x7F, 0x80, 0xFF, chance.randrange(256)))
        texts.append(bytes(data))
    lines = asked(native, "npz", texts, "10", "12")
    good = f"ok {hashlib.sha256(frame.tobytes() + labels.tobytes()).hexdigest()}"
    assert {line for line in lines if line.startswith("ok")} <= {good}
    assert sum(line.startswith("refused") for line in lines) > 1000


_CPUS = {
    "amx": "flags\t\t: fpu avx2 avx512f avx512_vnni avx512_bf16 amx_bf16 amx_int8",
    "bf16": "processor\t: 0\nflags\t\t: avx2 avx512f avx512_vnni avx512_bf16\nvmx flags\t: amx_int8",
    "vnni": "flags : avx2 avx_vnni\n\nflags : amx_int8",
    "avx2": "model name : x\nflags: avx2",
    "arm": "Features\t: asimd asimddp bf16 i8mm",
    "none": "",
}


def test_the_mode_of_float_layers_is_chosen_as_in_python(
    native: Path, int8_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import openvino

    graph = openvino.Core().read_model(int8_bundle / "engine.xml")
    for name, text in _CPUS.items():
        (tmp_path / name).write_text(text)
    code, said, errors = run_program(native / "mode", int8_bundle / "engine.xml", *(tmp_path / cpu for cpu in _CPUS))
    assert (code, errors) == (0, "")
    lines = said.splitlines()
    costs = []
    assert openvino_mode._has_wide_weights(graph)
    with monkeypatch.context() as patch:
        for text in _CPUS.values():
            patch.setattr(openvino_mode, "cpu_isa", lambda text=text: isa_of(text))
            costs.append(openvino_mode._fp32_costs(graph))
    assert len(set(costs)) >= 3, "the CPUs are too alike to prove anything"
    found = [line.split() for line in lines[: len(costs)]]
    np.testing.assert_allclose([float(cost) for cost, _ in found], costs, rtol=1e-9)
    saturating = [int8_saturates(isa_of(text)) for text in _CPUS.values()]
    assert sum(saturating) == 1
    assert [answer == "1" for _, answer in found] == saturating
    expected = []
    for precision in ("fp32", "fp16", "bf16", "int8"):
        for has in (frozenset({"FP32"}), frozenset({"FP32", "BF16"}), frozenset({"FP32", "FP16"})):
            for device in ("CPU", "GPU"):
                try:
                    expected.append(openvino_mode.execution_mode(graph, precision, has, device))  # type: ignore[arg-type]
                except BackendError:
                    expected.append("refused")
    assert lines[len(costs) :] == expected
    assert {"f32", "bf16", "f16", "refused"} <= set(expected)
    assert cpurates.macs_a_cycle(isa_of(_CPUS["amx"]))["int8"] == 1024


@pytest.fixture
def for_tensorrt(int8_bundle: Path, tmp_path: Path) -> Path:
    """A bundle whose engine is for the made-up TensorRT of native/fake, and takes three frames at once."""
    return made_up(int8_bundle, tmp_path / "made-up", "fake 3 64 96")


def made_up(bundle: Path, place: Path, plan: str) -> Path:
    place.mkdir()
    (place / "engine.plan").write_text(plan)
    with np.load(bundle / SELFTEST) as known:
        write_selftest(place / SELFTEST, known["frame"], answered(known["frame"]))
    manifest: Manifest = Bundle.read(bundle).manifest
    finish(place, replace(manifest, name=place.name, target="tensorrt", engine=("engine.plan",)))
    return place


def answered(frames: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The labels that the made-up TensorRT gives."""
    return ((frames.astype(np.int64) * (1, 2, 3)).sum(-1) % 5).astype(np.uint8)


@pytest.mark.parametrize("plan", ["fake 3 64 96", "fake 4 64 96", "fake 1 64 96", "fake -1 64 96"])
@pytest.mark.parametrize("capture", [{}, {"FAKE_CUDA_NO_CAPTURE": "1"}, {"FAKE_CUDA_NO_INSTANCE": "1"}])
def test_tensorrt_runs_batches_of_any_size_with_and_without_graphs(
    native: Path,
    int8_bundle: Path,
    tmp_path: Path,
    street_frames: NDArray[np.uint8],
    plan: str,
    capture: dict[str, str],
) -> None:
    bundle = made_up(int8_bundle, tmp_path / "made-up", plan)
    (tmp_path / "frames.raw").write_bytes(street_frames.tobytes())
    for mode in ("latency", "throughput"):
        words = (bundle, tmp_path / "frames.raw", tmp_path / "labels.raw", "--mode", mode)
        code, said, errors = run_program(native / "fake_run", *words, FAKE_CUDA_COUNT="1", **capture)
        assert code == 0, errors
        assert "6 frames" in said
        batch = max(int(plan.split()[1]), 1)
        batches = -(-6 // batch) + 1  # with the known answer
        assert errors == f"fake CUDA: {0 if capture else batches} graphs launched\n"
        labels = np.fromfile(tmp_path / "labels.raw", np.uint8).reshape(6, 64, 96)
        np.testing.assert_array_equal(labels, answered(street_frames))


def test_an_engine_takes_the_place_of_another(native: Path, for_tensorrt: Path) -> None:
    assert run_program(native / "moved", for_tensorrt) == (0, "3 x 64x96x3 uint8 BGR\n", "")


def test_tensorrt_fails_with_the_reason(
    native: Path, int8_bundle: Path, for_tensorrt: Path, tmp_path: Path, street_frames: NDArray[np.uint8]
) -> None:
    (tmp_path / "frames.raw").write_bytes(street_frames.tobytes())

    def said_of(bundle: Path, *more: str, **variables: str) -> str:
        words = (bundle, tmp_path / "frames.raw", tmp_path / "labels.raw", *more)
        code, said, errors = run_program(native / "fake_run", *words, **variables)
        assert (code, said) == (1, "")
        assert "not freed" not in errors
        return errors

    assert "no GPU can be used: CUDA error 100" in said_of(for_tensorrt, FAKE_CUDA_NO_GPU="1")
    assert "TensorRT failed to run: TensorRT gives no reason" in said_of(for_tensorrt, FAKE_TENSORRT_FAILS="1")
    other = made_up(int8_bundle, tmp_path / "other", "for another GPU")
    assert "does not load the engine, which was built for CPU" in said_of(other)
    assert "the engine was made up elsewhere" in said_of(other)
    small = made_up(int8_bundle, tmp_path / "small", "fake 1 32 96")
    assert "expected uint8 [N, 64, 96, 3]" in said_of(small)
    more = made_up(int8_bundle, tmp_path / "more", "fake 1 64 96 2")
    assert "expected a label a pixel, 6144 bytes, the engine gives 12288" in said_of(more)
    assert "is for openvino, and this program was built without it" in said_of(int8_bundle)
    key = "built without OpenSSL"
    assert key in said_of(for_tensorrt, "--trusted-key", "key.pub")
    assert key in said_of(for_tensorrt, FCNOPT_TRUSTED_KEYS="key.pub")
