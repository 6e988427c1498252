"""Tables, images, speech: what each brings to the one training loop."""
