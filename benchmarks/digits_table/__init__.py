"""Eight training methods on scikit-learn's digits, judged by five verifiers, over three seeds."""
