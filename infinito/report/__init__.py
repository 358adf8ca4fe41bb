"""What a person looks at of one run or several: a page, pictures, curves in the terminal."""
