"""Start a perception node, and beside it one that adapts it to where the robot is.

ros2 launch fieldsight perception.launch.py bundle:=/data/my.bundle image:=/camera/image_raw
"""

from launch import LaunchContext, LaunchDescription
from launch.actions import DeclareLaunchArgument, OpaqueFunction, SetEnvironmentVariable
from launch.substitutions import EnvironmentVariable, LaunchConfiguration, PathJoinSubstitution
from launch_ros.actions import LifecycleNode, Node
from launch_ros.parameter_descriptions import ParameterValue
from launch_ros.substitutions import FindPackageShare

PROFILES = "FASTRTPS_DEFAULT_PROFILES_FILE"
SHARED = ("bundle", "backend", "rectify")  # with the adapter node
EXECUTABLES = {"all": "perception", "detection": "detector", "segmentation": "segmenter"}
RESTART_S = 5.0


def text(value: str) -> ParameterValue:
    """A string that stays one: launch would read it as YAML, where on is true."""
    return ParameterValue(value, value_type=str)


# Arguments that are parameters too: type, and what is said of them. Empty: as in params_file.
PARAMETERS = {
    "bundle": (text, "folder of the model bundle"),
    "backend": (text, "engine: auto, or the name of one"),
    "rectify": (text, "lens to undistort: bundle, camera_info or none"),
    "score_threshold": (float, "boxes that score less are dropped, 0 to 1"),
    "max_age_ms": (int, "older frames are dropped and counted; 0 keeps all"),
}


def start_nodes(context: LaunchContext) -> list[Node]:
    """The nodes, with those parameters that were given."""

    def given(name: str) -> str:
        return LaunchConfiguration(name).perform(context)

    parameters = {
        name: convert(given(name)) for name, (convert, _) in PARAMETERS.items() if given(name)
    }
    executable = EXECUTABLES[given("task")]
    name, namespace = given("name") or executable, given("namespace")
    remappings = [("image", given("image")), ("camera_info", given("camera_info"))]
    autostart = given("autostart").lower() in ("true", "1", "yes")
    perception = LifecycleNode(
        package="fieldsight",
        executable=executable,
        name=name,
        namespace=namespace,
        parameters=[given("params_file"), {**parameters, "autostart": autostart}],
        remappings=remappings,
        output="screen",
    )
    if given("adapt") == "off":
        return [perception]
    shared = {key: parameters[key] for key in SHARED if key in parameters}
    if given("state_folder"):
        shared["state_folder"] = text(given("state_folder"))
    adapter = Node(
        package="fieldsight",
        executable="adapter",
        name="adapter",
        namespace=namespace,
        parameters=[
            given("adapter_params_file"),
            {
                **shared,
                "mode": text(given("adapt")),
                "perception": text(name),
                "task": text(given("task")),
            },
        ],
        remappings=remappings,
        output="screen",
        respawn=True,  # perception goes on meanwhile with the adapter it has
        respawn_delay=RESTART_S,
    )
    return [perception, adapter]


def params_file(name: str, config: str, said: str) -> DeclareLaunchArgument:
    """An argument that names a file of parameters, by default one of the package's."""
    share = FindPackageShare("fieldsight")
    default = PathJoinSubstitution([share, "config", config])
    return DeclareLaunchArgument(name, default_value=default, description=said)


def generate_launch_description() -> LaunchDescription:
    """Arguments, the DDS profile, and the nodes."""
    arguments = [
        DeclareLaunchArgument(name, default_value="", description=said)
        for name, (_, said) in PARAMETERS.items()
    ]
    profile = PathJoinSubstitution([FindPackageShare("fieldsight"), "config", "fastdds.xml"])
    return LaunchDescription(
        [
            *arguments,
            DeclareLaunchArgument("image", default_value="image", description="image topic"),
            DeclareLaunchArgument(
                "camera_info",
                default_value="camera_info",
                description="camera_info topic, heard with rectify:=camera_info",
            ),
            DeclareLaunchArgument(
                "task",
                default_value="all",
                choices=list(EXECUTABLES),
                description="what to publish: all that the bundle has, or one task",
            ),
            DeclareLaunchArgument(
                "adapt",
                default_value="shadow",
                choices=["off", "shadow", "on"],
                description="to where the robot is: off, shadow (decide, change nothing) or on",
            ),
            DeclareLaunchArgument(
                "state_folder",
                default_value="",
                description="keeps what was learnt; empty: as in adapter_params_file",
            ),
            DeclareLaunchArgument(
                "autostart",
                default_value="true",
                description="configure and activate at once; false leaves it to a manager",
            ),
            DeclareLaunchArgument(
                "name", default_value="", description="node name; empty for the executable's"
            ),
            DeclareLaunchArgument("namespace", default_value="", description="node namespace"),
            params_file("params_file", "perception.yaml", "YAML file of perception's parameters"),
            params_file("adapter_params_file", "adapter.yaml", "YAML file of the adapter's"),
            SetEnvironmentVariable(PROFILES, EnvironmentVariable(PROFILES, default_value=profile)),
            OpaqueFunction(function=start_nodes),
        ]
    )
