"""How the normal equations of one group of tensors are solved."""
