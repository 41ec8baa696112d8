"""Stores that a team might take instead, each through its own client library, doing what a put and a get do."""
