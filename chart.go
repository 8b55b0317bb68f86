package daytona

import "encoding/json"

// ChartType is what a [Chart] is.
type ChartType string

// The types of charts.
const (
	LineChart      ChartType = "line"
	ScatterChart   ChartType = "scatter"
	BarChart       ChartType = "bar"
	PieChart       ChartType = "pie"
	BoxChart       ChartType = "box_and_whisker"
	CompositeChart ChartType = "composite_chart" // a figure of several
	UnknownChart   ChartType = "unknown"         // a picture and a title
)

// Chart is a figure that Python code showed with matplotlib: the picture, and
// the numbers behind it.
type Chart struct {
	Type  ChartType `json:"type"`
	Title string    `json:"title,omitempty"`
	// PNG is the picture; charts within a composite one have none.
	PNG []byte `json:"png,omitempty"`

	// The axes of line, scatter, bar and box charts; ticks and scales of the
	// first two. A scale is one of matplotlib's ("linear", "log", …), "datetime", whose
	// numbers are seconds since 1970, or "unknown".
	XLabel      string    `json:"x_label,omitempty"`
	YLabel      string    `json:"y_label,omitempty"`
	XTicks      []float64 `json:"x_ticks,omitempty"`
	YTicks      []float64 `json:"y_ticks,omitempty"`
	XTickLabels []string  `json:"x_tick_labels,omitempty"`
	YTickLabels []string  `json:"y_tick_labels,omitempty"`
	XScale      string    `json:"x_scale,omitempty"`
	YScale      string    `json:"y_scale,omitempty"`

	// Elements are the data, in the order in which they were drawn.
	Elements []ChartElement `json:"elements,omitempty"`
}

// ChartElement is a line or a cloud of points, a bar, a piece of a pie, a box
// with its whiskers or, within a composite chart, a chart. Only the fields of
// its kind are set.
type ChartElement struct {
	Label string `json:"label,omitempty"`
	// Points of a line or a cloud, X and Y of each. Names on an axis are
	// numbered from 0; points without a place are left out.
	Points [][2]float64 `json:"points,omitempty"`
	// Value of a bar, as text, and the Group of bars that it is in.
	Value string `json:"value,omitempty"`
	Group string `json:"group,omitempty"`
	// Angle of a piece in degrees, and its Radius.
	Angle  float64 `json:"angle,omitempty"`
	Radius float64 `json:"radius,omitempty"`
	// Of a box; Min and Max are the whiskers.
	Min           float64   `json:"min,omitempty"`
	FirstQuartile float64   `json:"first_quartile,omitempty"`
	Median        float64   `json:"median,omitempty"`
	ThirdQuartile float64   `json:"third_quartile,omitempty"`
	Max           float64   `json:"max,omitempty"`
	Outliers      []float64 `json:"outliers,omitempty"`
	// Chart within a composite chart; nil elsewhere.
	Chart *Chart `json:"-"`
}

type (
	// Without methods, lest their decoding call itself.
	innerChart   Chart
	innerElement ChartElement
)

// UnmarshalJSON decodes an element as the wire has it: a chart within a chart
// is told by its type. Charts within that one are not looked for.
func (e *ChartElement) UnmarshalJSON(b []byte) error {
	var in struct {
		innerChart
		innerElement
		Elements []innerElement `json:"elements"`
	}
	if err := json.Unmarshal(b, &in); err != nil {
		return err
	}
	*e = ChartElement(in.innerElement)
	if in.Type == "" {
		return nil
	}
	c := Chart(in.innerChart)
	for _, i := range in.Elements {
		c.Elements = append(c.Elements, ChartElement(i))
	}
	e.Chart = &c
	return nil
}

// MarshalJSON is the inverse of UnmarshalJSON.
func (e ChartElement) MarshalJSON() ([]byte, error) {
	if e.Chart != nil {
		return json.Marshal(e.Chart)
	}
	return json.Marshal(innerElement(e))
}
