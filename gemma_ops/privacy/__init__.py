"""What may leave the machine: privacy classes, personal data, and equal texts under two classes."""
