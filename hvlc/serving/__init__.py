"""Packages behind HTTP: the chat completions of OpenAI's interface, one request after another.

A request is read (`requests`), waits its turn (`turns`), and is answered as one object or as a stream (`responses`).
Source of the protocol: OpenAI's API reference, "Create chat completion", and its Python client's types.
"""
