"""Another name of `asng_ext.ops.autoencoder`, where the layers of autoencoders are now."""

from asng_ext.ops.autoencoder import *  # noqa: F403
from asng_ext.ops.autoencoder import __all__ as __all__
