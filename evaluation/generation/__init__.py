"""Tables II and III: generated samples against held-out real ones."""
