"""What colcon installs of the ROS 2 package."""

from glob import glob

from setuptools import setup

NAME = "fieldsight"

setup(
    name=NAME,
    version="0.1.0",
    packages=[NAME],
    data_files=[
        ("share/ament_index/resource_index/packages", [f"resource/{NAME}"]),
        (f"share/{NAME}", ["package.xml"]),
        (f"share/{NAME}/launch", glob("launch/*.launch.py")),
        (f"share/{NAME}/config", glob("config/*")),
    ],
    install_requires=["setuptools"],
    zip_safe=False,
    maintainer="Fieldsight maintainers",
    maintainer_email="maintainers@fieldsight.example.org",
    description="Lifecycle nodes for object detection and segmentation",
    license="Apache-2.0",
    entry_points={
        "console_scripts": [
            f"detector = {NAME}.perception_node:detector",
            f"segmenter = {NAME}.perception_node:segmenter",
            f"perception = {NAME}.perception_node:main",
            f"adapter = {NAME}.adapter_node:main",
            f"camera_publisher = {NAME}.camera_publisher:main",
        ],
    },
)
