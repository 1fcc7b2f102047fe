"""The quick competition instances: answers, crashes, time limits."""
