"""Devices: what an exported model is timed on, and the latency model learnt from it."""

from nas.devices.choosing import choose
from nas.devices.device import Device
from nas.devices.latency import LatencyModel
from nas.devices.profiles import Profile, Sample
from nas.devices.profiling import Measured, measure, profile
from nas.devices.runtimes import OnnxRuntime, Runtime, TorchEager

__all__ = [
    "Device",
    "LatencyModel",
    "Measured",
    "OnnxRuntime",
    "Profile",
    "Runtime",
    "Sample",
    "TorchEager",
    "choose",
    "measure",
    "profile",
]
