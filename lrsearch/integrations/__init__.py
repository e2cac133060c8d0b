"""The range test and the schedules inside other libraries' training loops: one file each, imported by its name.

    lrsearch.integrations.lightning    Lightning's Trainer       pip install 'lrsearch[lightning]'
    lrsearch.integrations.keras        Keras 3, any backend      pip install 'lrsearch[keras]'
    lrsearch.integrations.fastai       fastai's Learner          pip install 'lrsearch[fastai]'

Each has a function `lr_range_test` and the callbacks `RangeTestCallback` and `ScheduleCallback`.
"""
