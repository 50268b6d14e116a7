"""Devices: what an exported model is timed on, and the latency model learnt from it."""

from nas.devices.device import Device
from nas.devices.runtimes import OnnxRuntime, TorchEager

__all__ = ["Device", "OnnxRuntime", "TorchEager"]
