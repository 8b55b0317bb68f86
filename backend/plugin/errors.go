package plugin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/daytona-go/daytona"
	pb "github.com/daytona-go/daytona/backend/plugin/proto"
)

// What an error may bring along. HTTP/2 carries it in trailers, which are not
// for much.
const (
	maxErrorDepth = 10
	maxErrorText  = 8 << 10 // bytes, each text
	maxCauses     = 8       // of one error
	maxErrorLog   = 32 << 10
)

// The kinds of the wire that are no kinds of package daytona.
const (
	kindCanceled = "canceled"
	kindDeadline = "deadline_exceeded"
)

// sentinels are what a kind is on its own.
var sentinels = map[daytona.Kind]error{
	daytona.KindInvalid: daytona.ErrInvalid, daytona.KindUnauthorized: daytona.ErrUnauthorized, daytona.KindForbidden: daytona.ErrForbidden,
	daytona.KindNotFound: daytona.ErrNotFound, daytona.KindTimeout: daytona.ErrTimeout, daytona.KindConflict: daytona.ErrConflict,
	daytona.KindGone: daytona.ErrGone, daytona.KindUnsupported: daytona.ErrUnsupported, daytona.KindState: daytona.ErrState,
	daytona.KindExhausted: daytona.ErrExhausted, daytona.KindInternal: daytona.ErrInternal, daytona.KindUnavailable: daytona.ErrUnavailable,
	daytona.KindNoSpace: daytona.ErrNoSpace,
}

// statusOf is the status of a call that ends with err.
func statusOf(err error) error {
	if err == nil {
		return nil
	}
	m := errorToWire(err, 0)
	code := codes.Unknown
	switch daytona.KindOf(err) {
	case daytona.KindInvalid:
		code = codes.InvalidArgument
	case daytona.KindUnauthorized:
		code = codes.Unauthenticated
	case daytona.KindForbidden:
		code = codes.PermissionDenied
	case daytona.KindNotFound, daytona.KindGone:
		code = codes.NotFound
	case daytona.KindConflict:
		code = codes.AlreadyExists
	case daytona.KindUnsupported:
		code = codes.Unimplemented
	case daytona.KindState:
		code = codes.FailedPrecondition
	case daytona.KindExhausted, daytona.KindNoSpace:
		code = codes.ResourceExhausted
	case daytona.KindUnavailable:
		code = codes.Unavailable
	case daytona.KindTimeout:
		code = codes.DeadlineExceeded
	}
	s, detailErr := status.New(code, clip(err.Error())).WithDetails(m)
	if detailErr != nil {
		return status.Error(code, clip(err.Error()))
	}
	return s.Err()
}

// clip makes a text fit to travel: short enough, and valid UTF-8.
func clip(s string) string {
	if len(s) > maxErrorText {
		s = s[:maxErrorText] + "…"
	}
	return strings.ToValidUTF8(s, "�")
}

// errorToWire takes an error apart.
func errorToWire(err error, depth int) *pb.Error {
	if e, ok := err.(*daytona.Error); ok {
		m := &pb.Error{Kind: string(e.Kind), Op: clip(e.Op), Subject: clip(e.Subject), Field: clip(e.Field), Message: clip(e.Message)}
		valueToWire(m, e.Value)
		if e.Err != nil {
			if depth < maxErrorDepth {
				m.Causes = []*pb.Error{errorToWire(e.Err, depth+1)}
			} else {
				m.Message = clip(m.Message + ": " + e.Err.Error())
			}
		}
		return m
	}
	if e, ok := err.(*daytona.BuildError); ok && depth < maxErrorDepth {
		return &pb.Error{
			Build: &pb.BuildFailure{
				Step: int64(e.Step), Name: clip(e.Name), Line: int64(e.Line), ExitCode: int64(e.ExitCode), Log: e.Log[max(0, len(e.Log)-maxErrorLog):],
			},
			Causes: []*pb.Error{errorToWire(e.Err, depth+1)},
		}
	}
	m := &pb.Error{Message: clip(err.Error()), Plain: true}
	var causes []error
	switch u := err.(type) {
	case interface{ Unwrap() error }:
		if c := u.Unwrap(); c != nil {
			causes = []error{c}
		}
	case interface{ Unwrap() []error }:
		causes = u.Unwrap()
	}
	if depth < maxErrorDepth {
		for _, c := range causes[:min(len(causes), maxCauses)] {
			m.Causes = append(m.Causes, errorToWire(c, depth+1))
		}
	}
	if len(m.Causes) == 0 {
		// The end of a chain, or of what of it travels, says what it matches.
		switch {
		case errors.Is(err, context.Canceled):
			m.Kind = kindCanceled
		case errors.Is(err, context.DeadlineExceeded):
			m.Kind = kindDeadline
		default:
			if k := daytona.KindOf(err); k != daytona.KindInternal || errors.Is(err, daytona.ErrInternal) {
				m.Kind = string(k)
			}
		}
	}
	return m
}

// valueToWire stores the offending value so that the restored error reads the
// same.
func valueToWire(m *pb.Error, value any) {
	switch v := reflect.ValueOf(value); v.Kind() {
	case reflect.Invalid:
	case reflect.String:
		// A named string is formatted without quotes, and may have a method.
		if s, ok := value.(string); ok {
			m.Value = &pb.Error_Text{Text: clip(s)}
			return
		}
		m.Value = &pb.Error_Printed{Printed: clip(fmt.Sprint(value))}
	default:
		switch x := value.(type) {
		case bool:
			m.Value = &pb.Error_Boolean{Boolean: x}
		case int:
			m.Value = &pb.Error_Integer{Integer: int64(x)}
		case int64:
			m.Value = &pb.Error_Integer{Integer: x}
		case float64:
			m.Value = &pb.Error_Number{Number: x}
		default:
			m.Value = &pb.Error_Printed{Printed: clip(fmt.Sprint(value))}
		}
	}
}

// errorFromWire puts an error together again.
func errorFromWire(m *pb.Error, depth int) error {
	var causes []error
	if depth < maxErrorDepth+1 {
		for _, c := range m.GetCauses()[:min(len(m.GetCauses()), maxCauses)] {
			causes = append(causes, errorFromWire(c, depth+1))
		}
	}
	if f := m.GetBuild(); f != nil {
		e := &daytona.BuildError{Step: int(f.GetStep()), Name: f.GetName(), Line: int(f.GetLine()), ExitCode: int(f.GetExitCode()), Log: f.GetLog()}
		switch len(causes) {
		case 0:
			e.Err = &remoteError{text: "it failed"}
		case 1:
			e.Err = causes[0]
		default:
			e.Err = errors.Join(causes...)
		}
		return e
	}
	switch m.GetKind() {
	case kindCanceled:
		causes = append(causes, context.Canceled)
	case kindDeadline:
		causes = append(causes, context.DeadlineExceeded)
	default:
		if !m.GetPlain() {
			e := &daytona.Error{
				Kind: daytona.Kind(m.GetKind()), Op: m.GetOp(), Subject: m.GetSubject(), Field: m.GetField(),
				Value: valueFromWire(m), Message: m.GetMessage(),
			}
			if e.Kind != "" && sentinels[e.Kind] == nil {
				e.Kind = daytona.KindInternal // of a later version
			}
			switch len(causes) {
			case 0:
			case 1:
				e.Err = causes[0]
			default:
				e.Err = errors.Join(causes...)
			}
			return e
		}
		if s := sentinels[daytona.Kind(m.GetKind())]; s != nil {
			causes = append(causes, s)
		}
	}
	return &remoteError{text: m.GetMessage(), causes: causes}
}

func valueFromWire(m *pb.Error) any {
	switch v := m.GetValue().(type) {
	case *pb.Error_Text:
		return v.Text
	case *pb.Error_Integer:
		return v.Integer
	case *pb.Error_Number:
		return v.Number
	case *pb.Error_Boolean:
		return v.Boolean
	case *pb.Error_Printed:
		return printed(v.Printed)
	}
	return nil
}

// printed is a value of a type that does not cross the wire, as it is shown.
type printed string

// MarshalJSON gives it as text, or as it is if it is JSON.
func (p printed) MarshalJSON() ([]byte, error) {
	if json.Valid([]byte(p)) {
		return []byte(p), nil
	}
	return json.Marshal(string(p))
}

// remoteError is an error of the plugin's that is no daytona.Error. Its text
// has that of its causes in it.
type remoteError struct {
	text   string
	causes []error
}

func (e *remoteError) Error() string   { return e.text }
func (e *remoteError) Unwrap() []error { return e.causes }

// statusError is what the status of a failed call says. ok is false if it is
// not the plugin's word but that of the connection to it, which has no details.
func statusError(err error, op, subject string) (_ error, ok bool) {
	s, isStatus := status.FromError(err)
	if !isStatus {
		return err, false
	}
	for _, d := range s.Details() {
		if m, isError := d.(*pb.Error); isError {
			return errorFromWire(m, 0), true
		}
	}
	e := &daytona.Error{Op: op, Subject: subject, Message: clip(s.Message())}
	switch s.Code() {
	case codes.Canceled:
		return fmt.Errorf("%s: %w", op, context.Canceled), true
	case codes.DeadlineExceeded:
		return fmt.Errorf("%s: %w", op, context.DeadlineExceeded), true
	case codes.NotFound:
		e.Kind = daytona.KindNotFound
	case codes.AlreadyExists:
		e.Kind = daytona.KindConflict
	case codes.InvalidArgument, codes.OutOfRange:
		e.Kind = daytona.KindInvalid
	case codes.Unimplemented:
		e.Kind = daytona.KindUnsupported
	case codes.FailedPrecondition, codes.Aborted:
		e.Kind = daytona.KindState
	case codes.ResourceExhausted:
		e.Kind = daytona.KindExhausted
	case codes.PermissionDenied:
		e.Kind = daytona.KindForbidden
	case codes.Unauthenticated:
		e.Kind = daytona.KindUnauthorized
	case codes.Unavailable:
		e.Kind = daytona.KindUnavailable
		return e, false
	default:
		e.Kind = daytona.KindInternal
	}
	return e, true
}
