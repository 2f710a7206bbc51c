"""Ways of bringing tokens to experts and back, with one signature and one meaning."""
