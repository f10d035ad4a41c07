"""The model as graphs: components, wires, a builder, the plan for every weight. Knows no recipe and no target."""
