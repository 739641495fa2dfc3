# frozen_string_literal: true

require 'minitest/autorun'
require 'yaml'
require_relative 'lib/go_patch'

# The operations as the documentation of go-patch describes them.
class GoPatchTest < Minitest::Test
  DOCUMENT = <<~YAML
    key: 1
    key2: { nested: { super_nested: 2 }, other: 3 }
    array: [4, 5, 6]
    items: [{ name: item7 }, { name: item8 }, { name: item8 }]
  YAML

  # path, value, expected change of the document (by its key).
  REPLACES = {
    'a key' => ['/key', 10, { 'key' => 10 }],
    'a missing key with ?' => ['/new?', 10, { 'new' => 10 }],
    'a nested key' => ['/key2/nested/super_nested', 10,
                       { 'key2' => { 'nested' => { 'super_nested' => 10 }, 'other' => 3 } }],
    '? holds for all parts to its right' =>
      ['/key2/nested?/another/deep', 10,
       { 'key2' => { 'nested' => { 'super_nested' => 2, 'another' => { 'deep' => 10 } }, 'other' => 3 } }],
    'a missing list with -' => ['/new?/-', 10, { 'new' => [10] }],
    'a missing list with an item' => ['/new?/name=a/b', 10, { 'new' => [{ 'name' => 'a', 'b' => 10 }] }],
    'an index' => ['/array/0', 10, { 'array' => [10, 5, 6] }],
    'an index from the end' => ['/array/-1', 10, { 'array' => [4, 5, 10] }],
    'the end of a list' => ['/array/-', 10, { 'array' => [4, 5, 6, 10] }],
    'the previous item' => ['/array/1:prev', 10, { 'array' => [10, 5, 6] }],
    'the next item' => ['/array/0:next', 10, { 'array' => [4, 10, 6] }],
    'before an item' => ['/array/0:before', 10, { 'array' => [10, 4, 5, 6] }],
    'after an item' => ['/array/0:after', 10, { 'array' => [4, 10, 5, 6] }],
    'after the last item' => ['/array/-1:after', 10, { 'array' => [4, 5, 6, 10] }],
    'before the previous item' => ['/array/-1:prev:before', 10, { 'array' => [4, 10, 5, 6] }],
    'an item by name' => ['/items/name=item7', { 'name' => 'x' },
                          { 'items' => [{ 'name' => 'x' }, { 'name' => 'item8' }, { 'name' => 'item8' }] }],
    'a missing key of an item' =>
      ['/items/name=item7/count?', 10,
       { 'items' => [{ 'name' => 'item7', 'count' => 10 }, { 'name' => 'item8' }, { 'name' => 'item8' }] }],
    'a missing item with ?' =>
      ['/items/name=item9?', { 'name' => 'item9' },
       { 'items' => [{ 'name' => 'item7' }, { 'name' => 'item8' }, { 'name' => 'item8' }, { 'name' => 'item9' }] }],
    'a key of a missing item with ?' =>
      ['/items/name=item9?/count', 10,
       { 'items' => [{ 'name' => 'item7' }, { 'name' => 'item8' }, { 'name' => 'item8' },
                     { 'name' => 'item9', 'count' => 10 }] }],
    'before an item by name' =>
      ['/items/name=item7:before', 'x',
       { 'items' => ['x', { 'name' => 'item7' }, { 'name' => 'item8' }, { 'name' => 'item8' }] }],
    'escaped characters' => ['/a~1b~0c~2d~3e~7f~01?', 10, { 'a/b~c?d=e:f~1' => 10 }]
  }.freeze

  REMOVES = {
    'a key' => ['/key2/other', { 'key2' => { 'nested' => { 'super_nested' => 2 } } }],
    'a missing key with ?' => ['/missing?/deep', {}],
    'an index' => ['/array/1', { 'array' => [4, 6] }],
    'an item by name' => ['/items/name=item7', { 'items' => [{ 'name' => 'item8' }, { 'name' => 'item8' }] }],
    'a missing item with ?' => ['/items/name=item9?', {}]
  }.freeze

  ERRORS = {
    'a missing key' => [{ 'type' => 'replace', 'path' => '/missing', 'value' => 1 },
                        "key 'missing' is missing (there are: key, key2, array, items)"],
    'a missing key on the way' => [{ 'type' => 'replace', 'path' => '/key2/missing/x', 'value' => 1 },
                                   "key 'missing' is missing (there are: nested, other)"],
    'a missing item' => [{ 'type' => 'replace', 'path' => '/items/name=item9/x?', 'value' => 1 },
                         'exactly one item with name=item9 is needed, but there are 0'],
    'two items' => [{ 'type' => 'replace', 'path' => '/items/name=item8/x?', 'value' => 1 },
                    'exactly one item with name=item8 is needed, but there are 2'],
    'two items with ?' => [{ 'type' => 'remove', 'path' => '/items/name=item8?' },
                           'exactly one item with name=item8 is needed, but there are 2'],
    'an index that is too large' => [{ 'type' => 'replace', 'path' => '/array/3', 'value' => 1 },
                                     'index 3 is outside of a list of 3'],
    'before the first item' => [{ 'type' => 'replace', 'path' => '/array/0:prev', 'value' => 1 },
                                'index -1 is outside of a list of 3'],
    'a key of a list' => [{ 'type' => 'replace', 'path' => '/array/x', 'value' => 1 },
                          "a map is needed for key 'x', but there is a list"],
    'an item of a map' => [{ 'type' => 'replace', 'path' => '/key2/name=x', 'value' => 1 },
                           'a list is needed, but there is a map'],
    'a key of a number' => [{ 'type' => 'replace', 'path' => '/key/x?', 'value' => 1 },
                            "a map is needed for key 'x', but there is '1'"],
    'the end of a map' => [{ 'type' => 'replace', 'path' => '/key2/-', 'value' => 1 },
                           'a list is needed, but there is a map'],
    'an index of a missing list' => [{ 'type' => 'replace', 'path' => '/new?/0', 'value' => 1 },
                                     'a missing list has no index'],
    'a remove of a missing key' => [{ 'type' => 'remove', 'path' => '/missing' },
                                    "key 'missing' is missing (there are: key, key2, array, items)"],
    'a remove of a missing item' => [{ 'type' => 'remove', 'path' => '/items/name=item9' },
                                     'exactly one item with name=item9 is needed, but there are 0'],
    'a remove with an insertion' => [{ 'type' => 'remove', 'path' => '/array/0:before' },
                                     'before is only for the end of a path of replace'],
    'a remove of the end' => [{ 'type' => 'remove', 'path' => '/array/-' }, '- is only for replace'],
    'a remove of everything' => [{ 'type' => 'remove', 'path' => '' }, 'the whole document cannot be removed'],
    'a modifier of a key' => [{ 'type' => 'replace', 'path' => '/key:prev', 'value' => 1 },
                              "'key' cannot have the modifier prev"],
    'an unknown modifier' => [{ 'type' => 'replace', 'path' => '/array/0:last', 'value' => 1 },
                              "a modifier is prev, next, before or after, but is 'last'"],
    'a path without /' => [{ 'type' => 'replace', 'path' => 'key', 'value' => 1 },
                           "a path begins with /, but is 'key'"],
    'no path' => [{ 'type' => 'replace', 'value' => 1 }, 'path is missing'],
    'no value' => [{ 'type' => 'replace', 'path' => '/key' }, 'value is missing'],
    'a remove with a value' => [{ 'type' => 'remove', 'path' => '/key', 'value' => 1 }, 'remove has no value'],
    'an unknown type' => [{ 'type' => 'add', 'path' => '/key', 'value' => 1 },
                          "type is replace or remove, but is 'add'"],
    'an unknown key' => [{ 'type' => 'remove', 'path' => '/key', 'from' => '/x' }, "an operation has no key 'from'"]
  }.freeze

  REPLACES.each do |name, (path, value, change)|
    define_method("test_replace_of_#{name}") do
      changed = apply({ 'type' => 'replace', 'path' => path, 'value' => value })
      assert_equal document.merge(change), changed
    end
  end

  REMOVES.each do |name, (path, change)|
    define_method("test_remove_of_#{name}") do
      changed = apply({ 'type' => 'remove', 'path' => path })
      assert_equal document.merge(change), changed
    end
  end

  ERRORS.each do |name, (operation, sentence)|
    define_method("test_error_of_#{name}") do
      error = assert_raises(GoPatch::Error) { apply(operation) }
      assert_equal "operation 0 (#{operation['path']}): #{sentence}", error.message
    end
  end

  def test_removed_key_is_gone
    refute apply({ 'type' => 'remove', 'path' => '/key' }).key?('key')
  end

  def test_operations_follow_each_other_and_share_no_values
    value = { 'list' => [1] }
    changed = apply({ 'type' => 'replace', 'path' => '/a?', 'value' => value },
                    { 'type' => 'replace', 'path' => '/b?', 'value' => value },
                    { 'type' => 'replace', 'path' => '/a/list/-', 'value' => 2 })
    assert_equal [1, 2], changed['a']['list']
    assert_equal [1], changed['b']['list']
    assert_equal [1], value['list']
  end

  def test_whole_document
    assert_equal 5, apply({ 'type' => 'replace', 'path' => '', 'value' => 5 })
  end

  def test_error_names_the_operation
    good = { 'type' => 'replace', 'path' => '/key', 'value' => 2 }
    error = assert_raises(GoPatch::Error) { apply(good, { 'type' => 'remove', 'path' => '/none' }) }
    assert_match(%r{\Aoperation 1 \(/none\): }, error.message)
  end

  private

  def document = YAML.safe_load(DOCUMENT)
  def apply(*operations) = GoPatch.apply(document, operations)
end
