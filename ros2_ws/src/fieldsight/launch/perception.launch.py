"""Start a perception node.

ros2 launch fieldsight perception.launch.py bundle:=/data/my.bundle image:=/camera/image_raw
"""

from launch import LaunchContext, LaunchDescription
from launch.actions import DeclareLaunchArgument, OpaqueFunction, SetEnvironmentVariable
from launch.substitutions import EnvironmentVariable, LaunchConfiguration, PathJoinSubstitution
from launch_ros.actions import LifecycleNode
from launch_ros.substitutions import FindPackageShare

PROFILES = "FASTRTPS_DEFAULT_PROFILES_FILE"
# Arguments that are parameters too: type, and what is said of them. Empty: as in params_file.
PARAMETERS = {
    "bundle": (str, "folder of the model bundle"),
    "backend": (str, "engine: auto, or the name of one"),
    "rectify": (str, "lens to undistort: bundle, camera_info or none"),
    "score_threshold": (float, "boxes that score less are dropped, 0 to 1"),
    "max_age_ms": (int, "older frames are dropped and counted; 0 keeps all"),
}
EXECUTABLES = {"all": "perception", "detection": "detector", "segmentation": "segmenter"}


def start_node(context: LaunchContext) -> list[LifecycleNode]:
    """The node, with those parameters that were given."""

    def given(name: str) -> str:
        return LaunchConfiguration(name).perform(context)

    parameters = {
        name: convert(given(name)) for name, (convert, _) in PARAMETERS.items() if given(name)
    }
    parameters["autostart"] = given("autostart").lower() in ("true", "1", "yes")
    executable = EXECUTABLES[given("task")]
    node = LifecycleNode(
        package="fieldsight",
        executable=executable,
        name=given("name") or executable,
        namespace=given("namespace"),
        parameters=[given("params_file"), parameters],
        remappings=[("image", given("image")), ("camera_info", given("camera_info"))],
        output="screen",
    )
    return [node]


def generate_launch_description() -> LaunchDescription:
    """Arguments, the DDS profile, and the node."""
    share = FindPackageShare("fieldsight")
    arguments = [
        DeclareLaunchArgument(name, default_value="", description=text)
        for name, (_, text) in PARAMETERS.items()
    ]
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
                "autostart",
                default_value="true",
                description="configure and activate at once; false leaves it to a manager",
            ),
            DeclareLaunchArgument(
                "name", default_value="", description="node name; empty for the executable's"
            ),
            DeclareLaunchArgument("namespace", default_value="", description="node namespace"),
            DeclareLaunchArgument(
                "params_file",
                default_value=PathJoinSubstitution([share, "config", "perception.yaml"]),
                description="YAML file of all parameters",
            ),
            SetEnvironmentVariable(
                PROFILES,
                EnvironmentVariable(
                    PROFILES,
                    default_value=PathJoinSubstitution([share, "config", "fastdds.xml"]),
                ),
            ),
            OpaqueFunction(function=start_node),
        ]
    )
