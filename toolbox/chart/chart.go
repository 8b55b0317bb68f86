// Package chart has the Python program that turns what code shows with
// matplotlib into the charts of the public API. It knows nothing of how code
// is run nor of how charts are sent.
package chart

import _ "embed"

// Source defines setup(emit): from then on each figure that is shown is given
// to emit, as a dictionary that JSON can hold. It compiles with Python 3.6 and
// later and defines no other name.
//
//go:embed charts.py
var Source string
