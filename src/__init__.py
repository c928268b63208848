"""ScaleStudy: which way should this convnet be scaled, on this data, at this budget?"""
