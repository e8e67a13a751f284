"""OFG Deploy: train registration networks with On-the-Fly Guidance, export only the network, register NIfTI pairs."""

__version__ = "0.1.0"
