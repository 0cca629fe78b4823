"""Members of three levels and more; some of them reach 1 bit too."""
