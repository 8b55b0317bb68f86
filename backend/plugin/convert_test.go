package plugin

import (
	"net/netip"
	"reflect"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/daytona-go/daytona"
	pb "github.com/daytona-go/daytona/backend/plugin/proto"
)

// fill sets every field of a value to something that is not its zero. n makes
// them differ.
func fill(t *testing.T, v reflect.Value, n *int) {
	*n++
	switch v.Interface().(type) {
	case time.Time:
		v.Set(reflect.ValueOf(time.Unix(int64(1e9+*n), 5000).UTC()))
		return
	case netip.Prefix:
		v.Set(reflect.ValueOf(netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, byte(*n), 0}), 24)))
		return
	case func(daytona.Progress), func(daytona.BuildLog):
		return // crosses as a stream; TestProgress and TestBuild are about it
	case *daytona.Image:
		return // crosses by BuildImage; TestBuild is about it
	}
	switch v.Kind() {
	case reflect.Struct:
		for i := range v.NumField() {
			fill(t, v.Field(i), n)
		}
	case reflect.String:
		v.SetString("text " + string(rune('a'+*n%26)) + string(rune('a'+*n/26)))
	case reflect.Int, reflect.Int64:
		v.SetInt(int64(*n) * 1000)
	case reflect.Float64:
		v.SetFloat(float64(*n) + 0.25)
	case reflect.Uint8:
		v.SetUint(uint64(*n%255 + 1))
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 2, 2))
		for i := range 2 {
			fill(t, v.Index(i), n)
		}
	case reflect.Map:
		v.Set(reflect.MakeMap(v.Type()))
		for range 2 {
			k, e := reflect.New(v.Type().Key()).Elem(), reflect.New(v.Type().Elem()).Elem()
			fill(t, k, n)
			fill(t, e, n)
			v.SetMapIndex(k, e)
		}
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(t, v.Elem(), n)
	default:
		t.Fatalf("fill does not know %v", v.Type())
	}
	if v.IsZero() {
		t.Fatalf("fill left a %v zero", v.Type())
	}
}

// across sends a value to the other side: through the bytes of the wire.
func across[T any, M proto.Message](t *testing.T, in T, to func(T) M, from func(M) (T, error)) T {
	t.Helper()
	m := to(in)
	data, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	got := m.ProtoReflect().New().Interface()
	if err := proto.Unmarshal(data, got); err != nil {
		t.Fatal(err)
	}
	out, err := from(got.(M))
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func survives[T any, M proto.Message](t *testing.T, to func(T) M, from func(M) (T, error)) {
	var in T
	t.Run(reflect.TypeFor[T]().Name(), func(t *testing.T) {
		n := 0
		fill(t, reflect.ValueOf(&in).Elem(), &n)
		out := across(t, in, to, from)
		a, b := reflect.ValueOf(in), reflect.ValueOf(out)
		for i := range a.NumField() {
			if !reflect.DeepEqual(a.Field(i).Interface(), b.Field(i).Interface()) {
				t.Errorf("field %s: sent %v, received %v: extend the message in backend.proto and the pair of functions in convert.go",
					a.Type().Field(i).Name, a.Field(i), b.Field(i))
			}
		}
		var zero T
		if got := across(t, zero, to, from); !reflect.DeepEqual(got, zero) {
			t.Errorf("the zero value was received as %+v", got)
		}
	})
}

// sure makes a conversion that cannot fail one that does not.
func sure[M, T any](f func(M) T) func(M) (T, error) {
	return func(m M) (T, error) { return f(m), nil }
}

// TestEveryFieldSurvives fails when a field is added to one of these types and
// not to the protocol.
func TestEveryFieldSurvives(t *testing.T) {
	survives(t, specToWire, specFromWire)
	survives(t, infoToWire, infoFromWire)
	survives(t, resourcesToWire, sure(resourcesFromWire))
	survives(t, networkToWire, networkFromWire)
	survives(t, filterToWire, sure(filterFromWire))
	survives(t, updateToWire, sure(updateFromWire))
	survives(t, snapshotToWire, snapshotFromWire)
	survives(t, snapshotSpecToWire, sure(snapshotSpecFromWire))
	survives(t, volumeToWire, volumeFromWire)
	survives(t, volumeSpecToWire, sure(volumeSpecFromWire))
	survives(t, buildOptionsToWire, buildOptionsFromWire)
	survives(t, buildLogToWire, sure(buildLogFromWire))
	survives(t, builtImageToWire, sure(builtImageFromWire))
	survives(t, func(o daytona.PauseOptions) *pb.PauseRequest { return pauseToWire("id", o) }, sure(pauseFromWire))
	survives(t, func(o daytona.ForkOptions) *pb.ForkRequest { return forkToWire("id", o) }, sure(forkFromWire))
	survives(t, func(o daytona.StopOptions) *pb.StopRequest { return stopToWire("id", o) }, sure(stopFromWire))
	if n := reflect.TypeFor[daytona.Progress]().NumField(); n != 3 {
		t.Errorf("Progress has %d fields: extend the message, Create of both sides, and this number", n)
	}
	if n := reflect.TypeFor[daytona.BuildContext]().NumField(); n != 5 {
		t.Errorf("BuildContext has %d fields: extend the message, BuildImage of both sides, and this number", n)
	}
	if n := reflect.TypeFor[daytona.BuildError]().NumField(); n != 6 {
		t.Errorf("BuildError has %d fields: extend the message, errors.go, and this number", n)
	}
}

// TestEmptyIsNotMissing: an empty list denies everything, a missing one is the
// default.
func TestEmptyIsNotMissing(t *testing.T) {
	p := across(t, daytona.NetworkPolicy{Allow: []netip.Prefix{}, AllowDomains: []string{}}, networkToWire, networkFromWire)
	if p.Allow == nil || p.AllowDomains == nil {
		t.Errorf("empty lists were received as %#v", p)
	}
	if u := across(t, daytona.Update{Labels: map[string]string{}}, updateToWire, sure(updateFromWire)); u.Labels == nil {
		t.Error("labels to be removed were received as none to be changed")
	}
	never := time.Duration(0)
	if u := across(t, daytona.Update{AutoStop: &never, AutoPause: &never}, updateToWire, sure(updateFromWire)); u.AutoStop == nil || *u.AutoStop != 0 || u.AutoPause == nil || *u.AutoPause != 0 {
		t.Errorf("intervals of 0 were received as %v and %v", u.AutoStop, u.AutoPause)
	}
}

// TestBadPolicyBlocks: a policy that cannot be read must not become one that
// allows something.
func TestBadPolicyBlocks(t *testing.T) {
	p, err := networkFromWire(&pb.NetworkPolicy{Allow: &pb.StringList{Items: []string{"10.0.0.0/8", "nonsense"}}})
	if daytona.KindOf(err) != daytona.KindInvalid || !p.Block {
		t.Errorf("got %+v, %v", p, err)
	}
}

// TestUnknownFieldsAreRefused: what a later host demands is not ignored.
func TestUnknownFieldsAreRefused(t *testing.T) {
	later := protowire.AppendVarint(protowire.AppendTag(nil, 1000, protowire.VarintType), 1)
	for name, m := range map[string]proto.Message{
		"top":    &pb.Spec{Name: "x"},
		"nested": &pb.Resources{Cpu: 1},
		"list":   &pb.VolumeMount{Volume: "v"},
	} {
		m.ProtoReflect().SetUnknown(later)
		spec := &pb.Spec{Name: "x", Env: map[string]string{"a": "b"}, Resources: &pb.Resources{}, Volumes: []*pb.VolumeMount{{}}}
		switch m := m.(type) {
		case *pb.Spec:
			spec = m
		case *pb.Resources:
			spec.Resources = m
		case *pb.VolumeMount:
			spec.Volumes = append(spec.Volumes, m)
		}
		request := &pb.CreateRequest{Message: &pb.CreateRequest_Spec{Spec: spec}}
		if err := known("create", request); daytona.KindOf(err) != daytona.KindUnsupported {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, m := range []proto.Message{
		&pb.BuildImageRequest{Message: &pb.BuildImageRequest_Spec{Spec: &pb.BuildSpec{Contexts: []*pb.BuildContext{{Path: "."}}}}},
		&pb.VolumeSpec{S3: &pb.S3Location{Bucket: "b"}}, &pb.SnapshotSpec{Name: "x"}, &pb.ForkRequest{Id: "x"}, &pb.PauseRequest{Id: "x"},
	} {
		if err := known("make", m); err != nil {
			t.Errorf("%T of this version is refused: %v", m, err)
		}
		switch m := m.(type) {
		case *pb.BuildImageRequest:
			m.GetSpec().Contexts[0].ProtoReflect().SetUnknown(later)
		case *pb.VolumeSpec:
			m.S3.ProtoReflect().SetUnknown(later)
		default:
			m.ProtoReflect().SetUnknown(later)
		}
		if err := known("make", m); daytona.KindOf(err) != daytona.KindUnsupported {
			t.Errorf("%T: %v", m, err)
		}
	}
	n := 0
	var s daytona.Spec
	fill(t, reflect.ValueOf(&s).Elem(), &n)
	if err := known("create", specToWire(s)); err != nil {
		t.Errorf("a Spec of this version is refused: %v", err)
	}
}

// FuzzErrorFromWire: a plugin may say anything.
func FuzzErrorFromWire(f *testing.F) {
	for _, m := range []*pb.Error{
		{Kind: "not_found", Op: "get"},
		{Kind: kindCanceled, Plain: true},
		{Build: &pb.BuildFailure{Name: "RUN", Log: []byte{0xff}}, Causes: []*pb.Error{{Kind: "timeout"}}},
		{Build: &pb.BuildFailure{}, Kind: "invalid", Plain: true},
		{Kind: "of a later version", Causes: []*pb.Error{{Plain: true, Message: "x"}, {}}, Value: &pb.Error_Integer{Integer: 1}},
	} {
		data, _ := proto.Marshal(m)
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		m := &pb.Error{}
		if proto.Unmarshal(data, m) != nil {
			return
		}
		err := errorFromWire(m, 0)
		if daytona.KindOf(err) == "" {
			t.Error("an error without a kind")
		}
		// It goes on, as it does when a plugin's backend is itself a plugin's.
		again := errorFromWire(errorToWire(err, 0), 0)
		if len(again.Error()) > 0 && daytona.KindOf(again) != daytona.KindOf(err) {
			t.Errorf("kind %s became %s", daytona.KindOf(err), daytona.KindOf(again))
		}
	})
}
