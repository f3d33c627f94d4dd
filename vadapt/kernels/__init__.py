"""Kernels: one public function each, and the forms of it that suit a platform."""
