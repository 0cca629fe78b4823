"""The core: quantizers and their combinators as pure functions, deployed tensors."""
