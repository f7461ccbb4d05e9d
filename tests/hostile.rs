//! Layers made to mislead: what they cannot do.
