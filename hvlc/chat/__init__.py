"""Chats as text and as tokens: the owner of chat templates, and the bounded process that renders them."""
