# A program that describes itself to screen readers. Its argument is the file
# that it writes to.
import sys
import gi
gi.require_version("Gtk", "3.0")
from gi.repository import Gtk

log = open(sys.argv[1], "a", buffering=1)

window = Gtk.Window(title="The form")
box = Gtk.Box(orientation=Gtk.Orientation.VERTICAL)
entry = Gtk.Entry()
entry.get_accessible().set_name("Your name")
button = Gtk.Button(label="Send it")
button.connect("clicked", lambda _: log.write("sent " + entry.get_text() + "\n"))
scale = Gtk.Scale.new_with_range(Gtk.Orientation.HORIZONTAL, 0, 100, 1)
scale.get_accessible().set_name("Volume")
scale.connect("value-changed", lambda s: log.write("volume %d\n" % s.get_value()))
for w in Gtk.Label(label="A label"), entry, button, scale:
    box.add(w)
window.add(box)
window.connect("destroy", Gtk.main_quit)
window.show_all()
window.present()
log.write("ready\n")
Gtk.main()
