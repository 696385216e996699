"""What training does to images and their labels at random."""
