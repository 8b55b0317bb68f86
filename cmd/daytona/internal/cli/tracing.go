package cli

import (
	"context"
	"errors"
	"log/slog"
	"net/url"
	"os"
	"strings"
	"time"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"

	"github.com/daytona-go/daytona"
)

// tracingConfig is where spans are sent, by OTLP over HTTP. What OpenTelemetry's
// own variables of the environment say comes after the file and counts; see
// https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/.
type tracingConfig struct {
	// Endpoint is the URL of a collector, to which /v1/traces is added. Defaults to
	// none: no spans are made, unless the environment names one.
	Endpoint string `yaml:"endpoint"`
	// Headers are sent with each request. Defaults to none.
	Headers map[string]string `yaml:"headers" secret:"value"`
	// Ratio is which part of the traces that begin here is sent, from 0 to 1. What
	// belongs to a client's trace is sent if the client sends its own. Defaults to 1.
	Ratio *float64 `yaml:"ratio"`
}

func (t *tracingConfig) check() error {
	wrong := func(field string, value any, rule string) error {
		return &daytona.Error{Kind: daytona.KindInvalid, Op: "configure server", Field: field, Value: value, Message: rule}
	}
	if u, err := url.Parse(t.Endpoint); t.Endpoint != "" && (err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "") {
		return wrong("tracing.endpoint", t.Endpoint, "must be an http or https URL")
	}
	if t.Ratio != nil && !(*t.Ratio >= 0 && *t.Ratio <= 1) {
		return wrong("tracing.ratio", *t.Ratio, "must be from 0 to 1")
	}
	return nil
}

// on reports whether spans are to be made.
func (t *tracingConfig) on() bool {
	if strings.EqualFold(os.Getenv("OTEL_SDK_DISABLED"), "true") {
		return false
	}
	switch os.Getenv("OTEL_TRACES_EXPORTER") {
	case "none":
		return false
	case "otlp":
		return true
	}
	return t.Endpoint != "" || os.Getenv("OTEL_EXPORTER_OTLP_ENDPOINT") != "" || os.Getenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") != ""
}

// provider makes spans of a service and sends them; nil if none are to be made.
// end sends what is left.
func (t *tracingConfig) provider(ctx context.Context, service, version string, log *slog.Logger) (_ trace.TracerProvider, end func(), err error) {
	if !t.on() {
		return nil, func() {}, nil
	}
	var options []otlptracehttp.Option
	if t.Endpoint != "" && os.Getenv("OTEL_EXPORTER_OTLP_ENDPOINT") == "" && os.Getenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") == "" {
		options = append(options, otlptracehttp.WithEndpointURL(strings.TrimRight(t.Endpoint, "/")+"/v1/traces"))
	}
	if len(t.Headers) > 0 && os.Getenv("OTEL_EXPORTER_OTLP_HEADERS") == "" && os.Getenv("OTEL_EXPORTER_OTLP_TRACES_HEADERS") == "" {
		options = append(options, otlptracehttp.WithHeaders(t.Headers))
	}
	exporter, err := otlptracehttp.New(ctx, options...)
	if err != nil {
		return nil, nil, err
	}
	about, err := resource.New(ctx, resource.WithTelemetrySDK(), resource.WithHost(),
		resource.WithAttributes(attribute.String("service.name", service), attribute.String("service.version", version)), resource.WithFromEnv())
	if err != nil && !errors.Is(err, resource.ErrPartialResource) {
		return nil, nil, err
	}
	how := []sdktrace.TracerProviderOption{sdktrace.WithBatcher(exporter), sdktrace.WithResource(about)}
	if t.Ratio != nil && os.Getenv("OTEL_TRACES_SAMPLER") == "" {
		how = append(how, sdktrace.WithSampler(sdktrace.ParentBased(sdktrace.TraceIDRatioBased(*t.Ratio))))
	}
	// Of this process alone: the library has one place for it.
	otel.SetErrorHandler(otel.ErrorHandlerFunc(func(err error) { log.Warn("traces", "err", err) }))
	p := sdktrace.NewTracerProvider(how...)
	return p, func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		if err := p.Shutdown(ctx); err != nil {
			log.Warn("the last spans were not sent", "err", err)
		}
	}, nil
}
