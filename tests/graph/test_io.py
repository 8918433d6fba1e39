from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from fcnopt.errors import GraphError, UsageError
from fcnopt.graph import io
from fcnopt.graph.compare import compare
from fcnopt.spec import METADATA_KEY, ClassSpec, FrameSpec, ModelSpec
from tests.graph.build import model, ops


@pytest.fixture
def tiny(rng: np.random.Generator) -> onnx.ModelProto:
    """A convolution with 5880 bytes of weights."""
    made = model(
        [helper.make_node("Conv", ["x", "w", "b"], ["y"], name="conv")],
        {"x": [1, 3, 8, 9]},
        {"y": [1, 10, 2, 3]},
        {"w": rng.standard_normal((10, 3, 7, 7), np.float32), "b": rng.standard_normal(10, np.float32)},
    )
    made.doc_string = "a tiny network"
    made.metadata_props.add(key="author", value="someone")
    return made


def names_in(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def external(tiny: onnx.ModelProto, folder: Path, **changes: str | None) -> Path:
    """The model with external data; `changes` replace what it says about where `w` is."""
    path = io.save(tiny, folder / "model.onnx", external_above=100)
    light = onnx.load_model(path, load_external_data=False)
    (tensor,) = [t for t in light.graph.initializer if t.external_data]
    for entry in list(tensor.external_data):
        if entry.key in changes:
            tensor.external_data.remove(entry)
    for key, value in changes.items():
        if value is not None:
            tensor.external_data.add(key=key, value=value)
    path.write_bytes(light.SerializeToString())
    return path


class TestRoundTrip:
    def test_one_file_up_to_the_threshold(self, tiny: onnx.ModelProto, tmp_path: Path) -> None:
        path = io.save(tiny, tmp_path / "new" / "model.onnx")
        assert names_in(path.parent) == ["model.onnx"]
        assert io.load(path) == tiny

    def test_weights_beside_it_above_the_threshold(self, tiny: onnx.ModelProto, tmp_path: Path) -> None:
        path = io.save(tiny, tmp_path / "model.onnx", external_above=100)
        assert names_in(tmp_path) == ["model.onnx", "model.onnx.data"]
        assert path.stat().st_size < 1500
        loaded = io.load(path)
        assert io.weights_hash(loaded) == io.weights_hash(tiny)
        assert all(not tensor.external_data for tensor in loaded.graph.initializer)

    def test_saving_leaves_the_model_in_memory_alone(self, tiny: onnx.ModelProto, tmp_path: Path) -> None:
        kept = tiny.SerializeToString()
        io.save(tiny, tmp_path / "model.onnx", external_above=100)
        assert tiny.SerializeToString() == kept

    def test_typed_values_go_to_the_data_file_too(self, tiny: onnx.ModelProto, tmp_path: Path) -> None:
        values = numpy_helper.to_array(tiny.graph.initializer[0])
        typed = helper.make_tensor("w", TensorProto.FLOAT, values.shape, values.reshape(-1).tolist())
        tiny.graph.initializer[0].CopyFrom(typed)
        path = io.save(tiny, tmp_path / "model.onnx", external_above=100)
        assert (tmp_path / "model.onnx.data").stat().st_size == values.nbytes
        np.testing.assert_array_equal(numpy_helper.to_array(io.load(path).graph.initializer[0]), values)

    def test_overwrites_an_older_pair(self, tiny: onnx.ModelProto, tmp_path: Path) -> None:
        path = io.save(tiny, tmp_path / "model.onnx", external_above=100)
        tiny.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.ones((10, 3, 7, 7), np.float32), "w"))
        io.save(tiny, path, external_above=100)
        assert io.weights_hash(io.load(path)) == io.weights_hash(tiny)

    def test_graph_round_trip_keeps_metadata_and_result(self, tiny: onnx.ModelProto) -> None:
        io.write_spec(tiny, ModelSpec(FrameSpec(8, 9), ClassSpec.of_count(10)))
        back = io.export_graph(io.import_graph(tiny), like=tiny)
        assert {p.key for p in back.metadata_props} == {"author", METADATA_KEY}
        assert (back.doc_string, back.producer_name, back.ir_version) == ("a tiny network", "tiny", 8)
        assert io.graph_hash(back) == io.graph_hash(tiny)
        assert io.weights_hash(back) == io.weights_hash(tiny)
        assert compare(tiny, back).max_relative_error == 0.0

    def test_functions_and_other_domains_survive_the_graph_round_trip(self) -> None:
        twice = helper.make_function(
            "mine", "Twice", ["a"], ["b"], [helper.make_node("Add", ["a", "a"], ["b"])], [helper.make_opsetid("", 17)]
        )
        graph = helper.make_graph(
            [helper.make_node("Twice", ["x"], ["y"], domain="mine")],
            "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2])],
        )
        opsets = [helper.make_opsetid("", 17), helper.make_opsetid("mine", 1)]
        made = helper.make_model(graph, functions=[twice], opset_imports=opsets, ir_version=8)
        back = io.export_graph(io.import_graph(made), like=made)
        assert [f.name for f in back.functions] == ["Twice"]
        assert compare(made, back).max_relative_error == 0.0

    def test_ir_version_3_becomes_one_that_allows_constants(self, rng: np.random.Generator) -> None:
        old = model(
            [helper.make_node("Conv", ["x", "w"], ["y"])],
            {"x": [1, 3, 4, 4]},
            {"y": [1, 2, 4, 4]},
            {"w": rng.standard_normal((2, 3, 1, 1), np.float32)},
            opset=9,
            as_inputs=True,
        )
        back = io.export_graph(io.import_graph(old), like=old)
        onnx.checker.check_model(back, full_check=True)
        assert back.ir_version == 4
        assert [value.name for value in back.graph.input] == ["x"]


class TestSpec:
    def test_none_where_there_is_none(self, tiny: onnx.ModelProto) -> None:
        assert io.read_spec(tiny) is None

    def test_replaces_an_older_one(self, tiny: onnx.ModelProto) -> None:
        for height in (8, 16):
            spec = ModelSpec(FrameSpec(height, 9), ClassSpec.named("camvid"))
            io.write_spec(tiny, spec)
        assert io.read_spec(tiny) == spec
        assert [p.key for p in tiny.metadata_props] == ["author", METADATA_KEY]

    def test_damaged(self, tiny: onnx.ModelProto) -> None:
        tiny.metadata_props.add(key=METADATA_KEY, value="{")
        with pytest.raises(UsageError, match="not JSON"):
            io.read_spec(tiny)


class TestHashes:
    def test_weights_do_not_touch_the_graph_hash(self, tiny: onnx.ModelProto) -> None:
        weights, graph = io.weights_hash(tiny), io.graph_hash(tiny)
        tiny.graph.initializer[1].CopyFrom(numpy_helper.from_array(np.zeros(10, np.float32), "b"))
        assert io.weights_hash(tiny) != weights
        assert io.graph_hash(tiny) == graph

    def test_attributes_do(self, tiny: onnx.ModelProto) -> None:
        weights, graph = io.weights_hash(tiny), io.graph_hash(tiny)
        tiny.graph.node[0].attribute.append(helper.make_attribute("dilations", [1, 1]))
        assert io.weights_hash(tiny) == weights
        assert io.graph_hash(tiny) != graph

    @pytest.mark.parametrize("part", ["name", "metadata", "doc"])
    def test_words_for_people_do_not(self, tiny: onnx.ModelProto, part: str) -> None:
        graph = io.graph_hash(tiny)
        if part == "name":
            tiny.graph.node[0].name = "other"
        elif part == "metadata":
            tiny.metadata_props.add(key="k", value="v")
        else:
            tiny.graph.doc_string = "words"
        assert io.graph_hash(tiny) == graph

    def test_bounds_of_a_crop_are_topology(self) -> None:
        made = [
            model(
                [helper.make_node("Slice", ["x", "start", "end", "axes"], ["y"])],
                {"x": [1, 2, 8, 8]},
                {"y": [1, 2, end, 8]},
                {"start": np.array([0]), "end": np.array([end]), "axes": np.array([2])},
            )
            for end in (5, 6)
        ]
        assert io.graph_hash(made[0]) != io.graph_hash(made[1])

    def test_storage_makes_no_difference(self, tiny: onnx.ModelProto) -> None:
        weights, values = io.weights_hash(tiny), numpy_helper.to_array(tiny.graph.initializer[1])
        tiny.graph.initializer[1].CopyFrom(helper.make_tensor("b", TensorProto.FLOAT, values.shape, values.tolist()))
        assert io.weights_hash(tiny) == weights


class TestBadFiles:
    def test_missing_suggests_the_nearest(self, tiny: onnx.ModelProto, tmp_path: Path) -> None:
        io.save(tiny, tmp_path / "fcn8s.onnx")
        with pytest.raises(GraphError, match=r"fcn8.onnx: no such file\n  fix: did you mean fcn8s.onnx\?"):
            io.load(tmp_path / "fcn8.onnx")

    def test_missing_folder(self, tmp_path: Path) -> None:
        with pytest.raises(GraphError, match=r"the folder .*nowhere is missing too"):
            io.load(tmp_path / "nowhere" / "a.onnx")

    def test_folder(self, tmp_path: Path) -> None:
        with pytest.raises(GraphError, match="found a folder"):
            io.load(tmp_path)

    @pytest.mark.parametrize("content", [b"", b"this is not a model at all", b"\x89PNG\r\n\x1a\n" * 20])
    def test_not_onnx(self, tmp_path: Path, content: bytes) -> None:
        path = tmp_path / "a.onnx"
        path.write_bytes(content)
        with pytest.raises(GraphError, match="expected an ONNX model"):
            io.load(path)

    @pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.99])
    def test_truncated(self, tiny: onnx.ModelProto, tmp_path: Path, share: float) -> None:
        path = io.save(tiny, tmp_path / "a.onnx")
        content = path.read_bytes()
        path.write_bytes(content[: int(len(content) * share)])
        with pytest.raises(GraphError, match=r"a.onnx"):
            io.load(path)

    @pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
    def test_weights_that_are_not_finite(self, tiny: onnx.ModelProto, tmp_path: Path, bad: float) -> None:
        values = numpy_helper.to_array(tiny.graph.initializer[0]).copy()
        values[1, 2, 3, :2] = bad
        tiny.graph.initializer[0].CopyFrom(numpy_helper.from_array(values, "w"))
        path = io.save(tiny, tmp_path / "a.onnx")
        with pytest.raises(GraphError, match="weight 'w' has 2 of 1470 values that are NaN or infinite"):
            io.load(path)
        assert io.load(path, check=False) == tiny

    def test_infinite_bound_is_no_weight(self, tmp_path: Path) -> None:
        made = model(
            [helper.make_node("Clip", ["x", "lo", "hi"], ["y"])],
            {"x": [2]},
            {"y": [2]},
            {"lo": np.array(0, np.float32), "hi": np.array(np.inf, np.float32)},
        )
        assert io.load(io.save(made, tmp_path / "a.onnx")) == made

    def test_too_few_values(self, tiny: onnx.ModelProto, tmp_path: Path) -> None:
        tiny.graph.initializer[0].raw_data = tiny.graph.initializer[0].raw_data[:-4]
        path = io.save(tiny, tmp_path / "a.onnx")
        with pytest.raises(GraphError, match=r"tensor 'w' of shape \[10, 3, 7, 7\] does not have that many values"):
            io.load(path)

    def test_unknown_operator(self, tiny: onnx.ModelProto, tmp_path: Path) -> None:
        tiny.graph.node[0].op_type = "Convv"
        path = io.save(tiny, tmp_path / "a.onnx")
        with pytest.raises(
            GraphError, match=r"node 'conv' has the operator Convv, unknown in opset 17 \(nearest: Conv"
        ):
            io.load(path)

    def test_text_that_is_no_text(self, tiny: onnx.ModelProto, tmp_path: Path) -> None:
        """The checker names what it refuses, and cannot put that into words where its bytes are no UTF-8."""
        name = tiny.graph.node[0].input[0].encode()
        content = tiny.SerializeToString()
        assert content.count(name) > 1
        (tmp_path / "net.onnx").write_bytes(content.replace(name, b"\xff" * len(name), 1))
        with pytest.raises(GraphError, match=r"net\.onnx"):
            io.load(tmp_path / "net.onnx")

    def test_an_operator_that_is_no_text(self, tiny: onnx.ModelProto, tmp_path: Path) -> None:
        tiny.graph.node[0].op_type = "Damaged"
        (tmp_path / "net.onnx").write_bytes(tiny.SerializeToString().replace(b"Damaged", b"Da\xffaged"))
        with pytest.raises(GraphError, match=r"has the operator b'Da.xffaged'") as caught:
            io.load(tmp_path / "net.onnx")
        str(caught.value).encode()  # it can be printed

    def test_a_version_beyond_any(self, tiny: onnx.ModelProto, tmp_path: Path) -> None:
        tiny.opset_import.append(onnx.helper.make_opsetid("somebody", 2**62))
        tiny.graph.node[0].domain = "somebody"
        onnx.save(tiny, tmp_path / "net.onnx")
        with pytest.raises(GraphError, match="has the operator somebody::"):
            io.load(tmp_path / "net.onnx")

    def test_operator_of_another_domain(self, tiny: onnx.ModelProto, tmp_path: Path) -> None:
        tiny.graph.node[0].domain = "com.acme"
        tiny.opset_import.append(helper.make_opsetid("com.acme", 1))
        path = io.save(tiny, tmp_path / "a.onnx")
        with pytest.raises(GraphError, match=r"operator com.acme::Conv, unknown in opset 1"):
            io.load(path)

    @pytest.mark.parametrize(("version", "fix"), [(8, "version_converter"), (999, "newer onnx")])
    def test_opset(self, tiny: onnx.ModelProto, tmp_path: Path, version: int, fix: str) -> None:
        tiny.opset_import[0].version = version
        path = io.save(tiny, tmp_path / "a.onnx")
        with pytest.raises(GraphError, match=f"opset {version} is not supported, expected 9 to (.|\n)*{fix}"):
            io.load(path)

    def test_checker(self, tiny: onnx.ModelProto, tmp_path: Path) -> None:
        tiny.graph.node[0].input[0] = "nothing"
        path = io.save(tiny, tmp_path / "a.onnx")
        with pytest.raises(GraphError, match=r"not valid ONNX(.|\n)*nothing"):
            io.load(path)

    def test_shapes_that_do_not_fit(self, tiny: onnx.ModelProto, tmp_path: Path) -> None:
        tiny.graph.output[0].type.tensor_type.shape.dim[3].dim_value = 4
        path = io.save(tiny, tmp_path / "a.onnx")
        with pytest.raises(GraphError, match="not valid ONNX"):
            io.load(path)


class TestExternalData:
    @pytest.mark.parametrize("location", ["../secret.bin", "/etc/hostname", "sub/../../secret.bin", ""])
    def test_outside_the_folder(self, tiny: onnx.ModelProto, tmp_path: Path, location: str) -> None:
        (tmp_path / "secret.bin").write_bytes(bytes(4096))
        folder = tmp_path / "models"
        folder.mkdir()
        path = external(tiny, folder, location=location)
        with pytest.raises(GraphError, match=f"external data of 'w' is at '{location}', outside the model's folder"):
            io.load(path)

    def test_link_out_of_the_folder(self, tiny: onnx.ModelProto, tmp_path: Path) -> None:
        (tmp_path / "secret.bin").write_bytes(bytes(4096))
        folder = tmp_path / "models"
        folder.mkdir()
        (folder / "link.bin").symlink_to(tmp_path / "secret.bin")
        with pytest.raises(GraphError, match=r"external data of 'w' is at 'link.bin', outside"):
            io.load(external(tiny, folder, location="link.bin"))

    def test_refused_even_without_checks(self, tiny: onnx.ModelProto, tmp_path: Path) -> None:
        with pytest.raises(GraphError, match="outside the model's folder"):
            io.load(external(tiny, tmp_path, location="/etc/hostname"), check=False)

    def test_in_a_constant_nodes_attribute(self, tiny: onnx.ModelProto, tmp_path: Path) -> None:
        path = external(tiny, tmp_path, location="../secret.bin")
        light = onnx.load_model(path, load_external_data=False)
        weight = light.graph.initializer[0]
        light.graph.node.insert(0, helper.make_node("Constant", [], ["w"], value=weight))
        del light.graph.initializer[0]
        path.write_bytes(light.SerializeToString())
        with pytest.raises(GraphError, match=r"'w' is at '../secret.bin', outside"):
            io.load(path)

    def test_missing(self, tiny: onnx.ModelProto, tmp_path: Path) -> None:
        path = external(tiny, tmp_path)
        (tmp_path / "model.onnx.data").unlink()
        with pytest.raises(GraphError, match=r"'w' is at 'model.onnx.data', and there is no such file(.|\n)*two files"):
            io.load(path)

    def test_cut_off(self, tiny: onnx.ModelProto, tmp_path: Path) -> None:
        path = external(tiny, tmp_path)
        data = tmp_path / "model.onnx.data"
        data.write_bytes(data.read_bytes()[:-10])
        with pytest.raises(GraphError, match=r"external data of 'w' in 'model.onnx.data' cannot be read(.|\n)*length"):
            io.load(path)

    def test_negative_offset(self, tiny: onnx.ModelProto, tmp_path: Path) -> None:
        with pytest.raises(GraphError, match=r"external data of 'w' in(.|\n)*non-negative"):
            io.load(external(tiny, tmp_path, offset="-8"))

    def test_in_a_folder_below(self, tiny: onnx.ModelProto, tmp_path: Path) -> None:
        path = external(tiny, tmp_path, location="data/weights.bin")
        (tmp_path / "data").mkdir()
        (tmp_path / "model.onnx.data").rename(tmp_path / "data" / "weights.bin")
        assert io.weights_hash(io.load(path)) == io.weights_hash(tiny)


class TestFailedWrites:
    @pytest.mark.parametrize("above", [100, 10**9])
    def test_full_disk_leaves_what_was_there(
        self, tiny: onnx.ModelProto, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, above: int
    ) -> None:
        path = io.save(tiny, tmp_path / "model.onnx", external_above=above)
        kept = {entry.name: entry.read_bytes() for entry in tmp_path.iterdir()}

        def full(_descriptor: int) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(os, "fsync", full)
        tiny.graph.initializer[1].CopyFrom(numpy_helper.from_array(np.zeros(10, np.float32), "b"))
        with pytest.raises(GraphError, match=r"model.onnx: the disk is full; nothing was written\n  fix: free space"):
            io.save(tiny, path, external_above=above)
        assert {entry.name: entry.read_bytes() for entry in tmp_path.iterdir()} == kept

    def test_folder_that_is_a_file(self, tiny: onnx.ModelProto, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(GraphError, match="cannot be written"):
            io.save(tiny, tmp_path / "file" / "model.onnx")

    @pytest.mark.parametrize("crash_at", [1, 2])
    def test_killed_between_two_renames_leaves_no_pair_that_loads(
        self, tiny: onnx.ModelProto, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, crash_at: int
    ) -> None:
        path = io.save(tiny, tmp_path / "model.onnx", external_above=100)
        rename, count = Path.replace, 0

        def killed(self: Path, target: Path) -> Path:
            nonlocal count
            count += 1
            if count == crash_at:
                raise KeyboardInterrupt
            return rename(self, target)

        monkeypatch.setattr(Path, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            io.save(tiny, path, external_above=100)
        with pytest.raises(GraphError, match="no such file"):
            io.load(path)
        assert names_in(tmp_path) == ["model.onnx.data"]


def test_constants_keep_their_operators(tiny: onnx.ModelProto) -> None:
    assert ops(io.export_graph(io.import_graph(tiny), like=tiny)) == ["Conv"]
