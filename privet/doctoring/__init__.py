"""What is wrong with a client's or a federation's directory, and how is it mended?"""
