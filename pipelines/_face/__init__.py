"""Ebbtide: generate and complete data by reverse diffusion."""

__version__ = "0.1.0"
