"""Stages of a study: plan, search, confirmation, final test."""
