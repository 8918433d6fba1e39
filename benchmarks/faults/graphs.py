"""ONNX files: data outside the folder, sizes that are not there, cycles, depth; and damaged ones."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, TensorProto, helper

from faults.case import Case, Fault
from faults.mutations import mutated
from faults.onnxfiles import FLOAT, branches, constant, model_of, summed
from fcnopt.graph import io
from fcnopt.graph.passes import optimize
from fcnopt.graph.passes.fold import ConstantFoldPass
from fcnopt.graph.passes.view import GraphView
from fcnopt.models.sources import OnnxSource
from fcnopt.spec import METADATA_KEY

_SECRET = b"nobody may read this"


def cases(seeds: str, count: int, seed: int = 0) -> Iterator[Case]:
    """Every hand-made one, then damaged ones, to `count` in all."""
    _optimized(_written(_sane().SerializeToString(), Path.cwd()))  # what is imported on first use is no input's memory
    made = [Case("a whole one", partial(_made, lambda _: _sane()), _optimized)]
    made += [Case(name, partial(_made, make), _optimized) for name, make in HOSTILE.items()]
    made += [Case(name, partial(_made, make), _folded) for name, make in LARGE.items()]
    yield from made
    rng = np.random.default_rng(seed)
    whole = (Path(seeds) / "net.onnx").read_bytes()
    structure = _structure(whole)
    for number in range(count - len(made)):
        # Most bytes are weights, any value of which is one; so every other file has few
        content = mutated(structure if number % 2 else whole, rng)
        yield Case(f"damaged {number}", partial(_written, content), _loaded)


def _structure(whole: bytes) -> bytes:
    """The same graph with its weights at zero and short names, packed: bytes that matter."""
    model = onnx.load_model_from_string(whole)
    for tensor in model.graph.initializer:
        if len(tensor.raw_data) > 64:
            tensor.raw_data = tensor.raw_data[:16]
    return bytes(model.SerializeToString())


def _made(make: Callable[[Path], ModelProto | bytes], folder: Path) -> Path:
    found = make(folder)
    return _written(found if isinstance(found, bytes) else found.SerializeToString(), folder)


def _written(content: bytes, folder: Path) -> Path:
    path = folder / "net.onnx"
    path.write_bytes(content)
    return path


def _loaded(path: Path) -> str:
    model = io.load(path)
    for tensor in model.graph.initializer:
        if _SECRET in tensor.raw_data:
            raise Fault("a file outside was read into the weights")
    io.read_spec(model)
    io.weights_hash(model)
    io.graph_hash(model)
    return "read"


def _folded(path: Path) -> str:
    """Only what does not run the network: a network is a program, and a runtime does what it says."""
    ConstantFoldPass().run(GraphView(io.import_graph(io.load(path))))
    return "read"


def _optimized(path: Path) -> str:
    """Also what a build does with it next, and an export of somebody else's file."""
    _loaded(path)
    optimize(io.load(path))
    OnnxSource(path)
    return "read"


def _sane() -> ModelProto:
    return model_of([helper.make_node("Relu", ["x"], ["t"]), helper.make_node("Relu", ["t"], ["y"])])


def _external(location: str, folder: Path, **more: int) -> ModelProto:
    """A weight whose bytes are said to lie at `location`; the decoy is one folder up."""
    tensor = TensorProto(name="w", data_type=TensorProto.UINT8, dims=[20], data_location=TensorProto.EXTERNAL)
    place = location.replace("FOLDER", str(folder))
    for key, value in {"location": place, **more}.items():
        tensor.external_data.add(key=key, value=str(value))
    return model_of([helper.make_node("Cast", ["w"], ["y"], to=FLOAT)], [tensor], shape=[20])


def _linked(folder: Path) -> ModelProto:
    (folder / "weights").symlink_to(folder.parent / "secret.txt")
    return _external("weights", folder)


def _linked_folder(folder: Path) -> ModelProto:
    (folder / "data").symlink_to(folder.parent)
    return _external("data/secret.txt", folder)


def _pipe(folder: Path) -> ModelProto:
    os.mkfifo(folder / "weights")
    return _external("weights", folder)


def _beyond(folder: Path) -> ModelProto:
    (folder / "weights").write_bytes(b"12345")
    return _external("weights", folder, offset=1 << 60, length=1 << 60)


def _negative(folder: Path) -> ModelProto:
    (folder / "weights").write_bytes(b"1" * 64)
    return _external("weights", folder, offset=-1, length=-5)


def _huge_dims(dims: list[int], **fields: Any) -> Callable[[Path], ModelProto]:
    tensor = TensorProto(name="w", data_type=FLOAT, dims=dims, **fields)
    return lambda _: summed([tensor])


def _expands(op: str, shape: list[int]) -> Callable[[Path], ModelProto]:
    """Constants that a folding pass could be made to compute."""
    constants = [helper.make_tensor("shape", TensorProto.INT64, [len(shape)], shape), constant("one", [1.0])]
    node = helper.make_node(op, ["shape"] if op == "ConstantOfShape" else ["one", "shape"], ["w"])
    return lambda _: summed(constants, node)


def _range(_: Path) -> ModelProto:
    limits = (("a", 0.0), ("b", float(1 << 28)), ("c", 1.0))
    constants = [helper.make_tensor(name, FLOAT, [], [value]) for name, value in limits]
    return summed(constants, helper.make_node("Range", ["a", "b", "c"], ["w"]))


def _padded(_: Path) -> ModelProto:
    """A Pad of a constant; its result's shape is not inferred."""
    constants = [constant("one", [1.0]), helper.make_tensor("pads", TensorProto.INT64, [2], [0, 1 << 28])]
    return summed(constants, helper.make_node("Pad", ["one", "pads"], ["w"]))


def _resized(_: Path) -> ModelProto:
    constants = [helper.make_tensor("small", FLOAT, [1, 1, 1, 1], [1.0]), constant("scales", [1, 1, 1 << 14, 1 << 14])]
    return summed(constants, helper.make_node("Resize", ["small", "", "scales"], ["w"], mode="nearest"))


def _window(_: Path) -> ModelProto:
    size = helper.make_tensor("size", TensorProto.INT64, [], [1 << 28])
    return summed([size], helper.make_node("HannWindow", ["size"], ["w"], output_datatype=FLOAT))


def _cyclic(_: Path) -> ModelProto:
    return model_of([helper.make_node("Add", ["x", "b"], ["a"]), helper.make_node("Relu", ["a"], ["b"])], result="b")


def _itself(_: Path) -> ModelProto:
    return model_of([helper.make_node("Add", ["x", "y"], ["y"])])


def _chain(length: int, op: str) -> Callable[[Path], ModelProto]:
    names = ["x", *(f"t{number}" for number in range(length - 1)), "y"]
    return lambda _: model_of([helper.make_node(op, [a], [b]) for a, b in itertools.pairwise(names)])


def _loop(_: Path) -> ModelProto:
    """A Loop of 2^62 turns over constants."""
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["again"]), helper.make_node("Add", ["v", "v"], ["w"])],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("v", FLOAT, [1]),
        ],
        [helper.make_tensor_value_info("again", TensorProto.BOOL, []), helper.make_tensor_value_info("w", FLOAT, [1])],
    )
    constants = [
        helper.make_tensor("n", TensorProto.INT64, [], [2**62]),
        helper.make_tensor("t", TensorProto.BOOL, [], [1]),
    ]
    nodes = [helper.make_node("Loop", ["n", "t", "one"], ["l"], body=body), helper.make_node("Add", ["x", "l"], ["y"])]
    return model_of(nodes, [*constants, constant("one", [1.0])])


def _calls_itself(_: Path) -> ModelProto:
    """A function that consists of a call of itself."""
    call = helper.make_node("f", ["a"], ["b"], domain="d")
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("d", 1)]
    function = helper.make_function("d", "f", ["a"], ["b"], [call], opsets)
    model = model_of([helper.make_node("f", ["x"], ["y"], domain="d")])
    model.opset_import.append(helper.make_opsetid("d", 1))
    model.functions.append(function)
    return model


def _same_names(_: Path) -> ModelProto:
    return model_of([helper.make_node("Relu", ["x"], ["y"]), helper.make_node("Relu", ["x"], ["y"])])


def _sparse(_: Path) -> ModelProto:
    model = model_of([helper.make_node("Add", ["x", "w"], ["y"])])
    values = helper.make_tensor("w", FLOAT, [1], [1.0])
    indices = helper.make_tensor("w_i", TensorProto.INT64, [1], [5])
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [1 << 40]))
    return model


def _odd_spec(_: Path) -> ModelProto:
    model = model_of([helper.make_node("Relu", ["x"], ["y"])])
    model.metadata_props.add(key=METADATA_KEY, value="[" * 100_000)
    return model


HOSTILE: dict[str, Callable[[Path], ModelProto | bytes]] = {
    "data one folder up": partial(_external, "../secret.txt"),
    "data by a detour": partial(_external, "a/../../secret.txt"),
    "data at an absolute path": partial(_external, "FOLDER/../secret.txt"),
    "data in /etc": partial(_external, "/etc/hostname"),
    "data by a back slash": partial(_external, "..\\secret.txt"),
    "data behind a link": _linked,
    "data in a linked folder": _linked_folder,
    "data in a pipe": _pipe,
    "data beyond its file": _beyond,
    "data at a negative place": _negative,
    "data nowhere": partial(_external, ""),
    "data in the folder itself": partial(_external, "."),
    "a weight of a terabyte": _huge_dims([1 << 20, 1 << 18]),
    "a weight of more than 64 bits": _huge_dims([1 << 40, 1 << 40], raw_data=b"1234"),
    "a weight of negative size": _huge_dims([-1, 5], raw_data=b"1234"),
    "a weight of zero and huge": _huge_dims([0, 1 << 62]),
    "cyclic": _cyclic,
    "reads itself": _itself,
    "4,000 nodes in a row": _chain(4000, "Tanh"),
    "500 nodes that become one": _chain(500, "Relu"),
    "10 levels of two branches": branches(10),
    "32 levels of branches": branches(32),
    "2,000 levels of branches": branches(2000),
    "an endless loop": _loop,
    "a function of itself": _calls_itself,
    "two results of one name": _same_names,
    "a sparse weight of a terabyte": _sparse,
    "a deep spec": _odd_spec,
    "100,000 open messages": lambda _: b"\x3a\xff\xff\x03" * 100_000,
    "nothing": lambda _: b"",
}
# What they announce fits into a memory, so that nothing but a bound keeps it from being computed: 1 GiB.
LARGE: dict[str, Callable[[Path], ModelProto | bytes]] = {
    "a shape of 1 GiB": _expands("ConstantOfShape", [1 << 14, 1 << 14]),
    "an expansion to 1 GiB": _expands("Expand", [1 << 14, 1 << 14]),
    "tiles of 1 GiB": _expands("Tile", [1 << 28]),
    "a range of 1 GiB": _range,
    "padding by 1 GiB": _padded,
    "resizing to 1 GiB": _resized,
    "a window of 2 GiB": _window,
}
