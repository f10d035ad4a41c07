"""The model as graphs: components and wires, a builder, what is planned for every weight. Knows no recipe, no target."""
