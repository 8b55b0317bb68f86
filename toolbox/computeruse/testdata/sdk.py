# Calls every operation of computer use through the Python SDK's generated
# client, which checks what it is answered: sdk.py BASE-URL NODE-NAME.
import sys
import daytona_toolbox_api_client as client

base, log = sys.argv[1:]
api = client.ComputerUseApi(client.ApiClient(client.Configuration(host=base)))

assert api.get_computer_use_status().status == "active"
assert api.get_computer_use_system_status().status == "active"
assert api.start_computer_use().status["xvfb"].running
assert api.get_process_status("xfce4").running
assert api.get_process_logs("x11vnc").process_name == "x11vnc"
assert api.get_process_errors("xvfb").errors is not None
assert api.restart_process("novnc").message
d = api.get_display_info().displays[0]
assert (d.width, d.height, d.is_active) == (800, 600, True)
w = [w for w in api.get_windows().windows if w.title == "The form"][0]
assert w.is_active and w.width > 0
for shot in (
    api.take_screenshot(), api.take_screenshot(show_cursor=True), api.take_region_screenshot(0, 0, 10, 10),
    api.take_compressed_screenshot(format="jpeg", quality=40, scale=0.5), api.take_compressed_region_screenshot(0, 0, 10, 10, scale=0.5),
):
    assert shot.screenshot and shot.size_bytes > 0 and shot.cursor_position.x >= 0
p = api.move_mouse(client.MouseMoveRequest(x=5, y=6))
assert (p.x, p.y) == (5, 6)
p = api.get_mouse_position()
assert (p.x, p.y) == (5, 6)
assert api.click(client.MouseClickRequest(x=w.x + 5, y=w.y + 5, button="left", double=False)).x == w.x + 5
assert api.drag(client.MouseDragRequest(start_x=1, start_y=2, end_x=30, end_y=40)).y == 40
assert api.scroll(client.MouseScrollRequest(x=1, y=1, direction="down", amount=2)).success
api.type_text(client.KeyboardTypeRequest(text="hi", delay=1))
api.press_key(client.KeyboardPressRequest(key="a", modifiers=["ctrl"]))
api.press_hotkey(client.KeyboardHotkeyRequest(keys="ctrl+a"))

tree = api.get_accessibility_tree(scope="all", max_depth=2)
assert tree.root.role and not tree.truncated
found = api.find_accessibility_nodes(client.FindAccessibilityNodesRequest(scope="all", name="Send it", name_match="exact", role="push button")).matches
assert len(found) == 1 and found[0].bounds.width > 0
api.invoke_accessibility_node(client.AccessibilityInvokeRequest(id=found[0].id))
entry = api.find_accessibility_nodes(client.FindAccessibilityNodesRequest(scope="all", name="Your name")).matches[0]
api.focus_accessibility_node(client.AccessibilityNodeRequest(id=entry.id))
api.set_accessibility_node_value(client.AccessibilitySetValueRequest(id=entry.id, value="x"))
try:
    api.focus_accessibility_node(client.AccessibilityNodeRequest(id="nope"))
    assert False
except client.exceptions.NotFoundException as e:
    assert "no such id" in e.body

r = api.start_recording(client.StartRecordingRequest(label="from Python"))
assert r.status == "recording" and api.get_recording(r.id).id == r.id
done = api.stop_recording(client.StopRecordingRequest(id=r.id))
assert done.status == "completed" and done.duration_seconds > 0 and done.size_bytes > 0
assert [x.id for x in api.list_recordings().recordings] == [r.id]
assert len(api.download_recording(r.id)) == done.size_bytes
api.delete_recording(r.id)
assert api.stop_computer_use().status["xvfb"].running is False
print("done")
