"""What a sweep may say: statistics, guards, and the closed grammar of sentences, from records alone."""
