"""The core: quantizers as pure functions, deployed tensors, rules over trees."""
