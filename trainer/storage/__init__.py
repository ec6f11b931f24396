"""Bytes on disk through one seam, so that every operation can be recorded and made to fail."""
