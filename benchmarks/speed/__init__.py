"""CPU time and memory of every bound method, beside another library's."""
