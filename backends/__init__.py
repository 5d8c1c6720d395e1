"""Backends: each folder's ``INFO`` states facts without importing its library."""
