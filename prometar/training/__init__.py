"""One run: built, trained epoch by epoch, checkpointed and scored."""
