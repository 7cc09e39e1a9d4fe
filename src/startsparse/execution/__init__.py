"""How a step is computed: sites that hold a layer's weights masked or sparse, the choice between them, and hooks."""
