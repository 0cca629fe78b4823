"""The methods: pure functions of a layer's weights and of what its inputs say."""
