"""What a training run needs: data, models, rewards at run time, callbacks, the screen and the run itself."""
