"""The model as ONNX graphs: components, wires, a builder and the plan for weights. It knows no recipes or targets."""
