"""Stand-ins of ROS 2's Python modules: as much of them as deployed files use, and stricter where ROS is."""

from __future__ import annotations

import types
from typing import Any


class Record:
    """Keeps what it was made with."""

    def __init__(self, *given: Any, **named: Any) -> None:
        self.given, self.named = given, named


class Message:
    """A ROS message: fields by name, no others."""

    fields: tuple[str, ...] = ()

    def __init__(self, **fields: Any) -> None:
        assert set(fields) <= set(self.fields), f"{type(self).__name__} has no {set(fields) - set(self.fields)}"
        vars(self).update(fields)


class Image(Message):
    fields = ("header", "height", "width", "encoding", "is_bigendian", "step", "data")


class TensorShape(Message):
    fields = ("rank", "dims")


class Tensor(Message):
    fields = ("name", "shape", "data_type", "strides", "data")


class TensorList(Message):
    fields = ("header", "tensors")


class Node:
    """A node whose publishers keep what they publish."""

    given: dict[str, Any]

    def __init__(self, name: str) -> None:
        self.name, self.published, self.subscribed, self.errors = name, {}, {}, []  # type: ignore[var-annotated]

    def declare_parameter(self, name: str, value: Any) -> Any:
        assert type(self.given[name]) is type(value), f"{name}: ROS would refuse a parameter of another type"
        return types.SimpleNamespace(value=self.given[name])

    def create_publisher(self, kind: type, topic: str, qos: int) -> Any:
        assert qos == 1
        kept = self.published.setdefault(topic, [])

        def publish(message: Any) -> None:
            assert isinstance(message, kind)
            kept.append(message)

        return types.SimpleNamespace(publish=publish)

    def create_subscription(self, kind: type, topic: str, callback: Any, qos: Any) -> None:
        self.subscribed[topic] = (kind, callback, qos)

    def get_logger(self) -> Any:
        return types.SimpleNamespace(error=lambda text, **_: self.errors.append(text))


MODULES: dict[str, dict[str, Any]] = {
    "launch": {"LaunchDescription": Record},
    "launch.actions": {name: type(name, (Record,), {}) for name in ("DeclareLaunchArgument", "ExecuteProcess")},
    "launch.substitutions": {"LaunchConfiguration": type("LaunchConfiguration", (Record,), {})},
    "launch_ros": {},
    "launch_ros.actions": {"ComposableNodeContainer": type("ComposableNodeContainer", (Record,), {})},
    "launch_ros.descriptions": {"ComposableNode": Record},
    "rclpy": {},
    "rclpy.node": {"Node": Node},
    "rclpy.qos": {"qos_profile_sensor_data": "sensor data"},
    "sensor_msgs": {},
    "sensor_msgs.msg": {"Image": Image},
    "isaac_ros_tensor_list_interfaces": {},
    "isaac_ros_tensor_list_interfaces.msg": {"Tensor": Tensor, "TensorList": TensorList, "TensorShape": TensorShape},
}
