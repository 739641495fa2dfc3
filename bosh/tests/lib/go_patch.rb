# frozen_string_literal: true

# Applies operations files to a manifest as `bosh deploy -o FILE` does (go-patch, with its
# two operations `replace` and `remove`). Paths:
#
#   /key           key of a map that must exist
#   /key?          key that may be missing; so may everything to its right
#   /name=value    the one map of a list with that value; with `?` it may be missing
#   /0 /-1         index of a list, from its start or its end
#   /-             after the last item of a list
#   :prev :next    the item before or after the selected one
#   :before :after insert there (replace only, last part of a path)
#   ~0 ~1 ~2 ~3 ~7 the characters ~ / ? = :
module GoPatch
  class Error < StandardError; end

  Key = Struct.new(:name, :optional)
  Match = Struct.new(:key, :value, :optional, :modifiers)
  Index = Struct.new(:number, :modifiers)
  After = Class.new

  ESCAPES = { '~0' => '~', '~1' => '/', '~2' => '?', '~3' => '=', '~7' => ':' }.freeze
  MOVES = { 'prev' => -1, 'next' => 1 }.freeze
  INSERTS = { 'before' => 0, 'after' => 1 }.freeze

  module_function

  # The manifest after all operations; the given one is not changed.
  def apply(manifest, operations)
    raise Error, 'an operations file is a list of operations' unless operations.is_a?(Array)

    operations.each_with_index.reduce(Marshal.load(Marshal.dump(manifest))) do |document, (operation, index)|
      Operation.new(operation).apply(document)
    rescue Error => e
      raise Error, "operation #{index} (#{operation.is_a?(Hash) ? operation['path'] : operation}): #{e.message}"
    end
  end

  # The parts of a path.
  def parse(path)
    return [] if path.empty?
    raise Error, "a path begins with /, but is '#{path}'" unless path.start_with?('/')

    parts = path.split('/', -1).drop(1)
    optional = false
    parts.each_with_index.map do |part, index|
      text, *modifiers = part.split(':', -1)
      optional ||= text.to_s.end_with?('?')
      parse_part(text.to_s.delete_suffix('?'), modifiers, optional, index == parts.length - 1)
    end
  end

  def parse_part(text, modifiers, optional, last)
    unknown = modifiers - MOVES.keys - INSERTS.keys
    raise Error, "a modifier is prev, next, before or after, but is '#{unknown.first}'" unless unknown.empty?
    return Index.new(text.to_i, modifiers) if text.match?(/\A[+-]?\d+\z/)

    key, value = text.split('=', 2)
    return Match.new(unescape(key), unescape(value), optional, modifiers) if value
    raise Error, "'#{text}' cannot have the modifier #{modifiers.first}" unless modifiers.empty?

    last && text == '-' ? After.new : Key.new(unescape(text), optional)
  end

  def unescape(text) = text.gsub(/~[01237]/, ESCAPES)

  # One operation of a file.
  class Operation
    KEYS = %w[type path value error].freeze

    def initialize(definition)
      raise Error, 'an operation is a map' unless definition.is_a?(Hash)

      unknown = definition.keys - KEYS
      raise Error, "an operation has no key '#{unknown.first}'" unless unknown.empty?
      raise Error, 'path is missing' unless definition['path'].is_a?(String)

      @type, @value = definition.values_at('type', 'value')
      raise Error, "type is replace or remove, but is '#{@type}'" unless %w[replace remove].include?(@type)
      raise Error, 'value is missing' if @type == 'replace' && @value.nil?
      raise Error, 'remove has no value' if @type == 'remove' && definition.key?('value')

      @parts = GoPatch.parse(definition['path'])
    end

    def apply(document)
      if @parts.empty?
        raise Error, 'the whole document cannot be removed' if @type == 'remove'

        return copy
      end
      node = document
      catch(:done) { @parts.each_index { |index| node = step(node, index) } }
      document
    end

    private

    # Follows part `index` from `node`; at the last part, changes `node`.
    def step(node, index)
      part = @parts[index]
      last = index == @parts.length - 1
      case part
      when Key then step_key(node, part, index, last)
      when Match then step_match(node, part, last)
      when Index then step_index(list(node), part.number, part.modifiers, last)
      else step_after(node)
      end
    end

    def step_key(node, part, index, last)
      raise Error, "a map is needed for key '#{part.name}', but there is #{kind(node)}" unless node.is_a?(Hash)

      unless node.key?(part.name)
        unless part.optional
          raise Error, "key '#{part.name}' is missing (there are: #{node.keys.join(', ')})"
        end

        throw :done if @type == 'remove'
        node[part.name] = empty_for(@parts[index + 1]) unless last
      end
      last ? change(node, part.name) : node[part.name]
    end

    def step_match(node, part, last)
      matches = list(node).each_index.select { |i| node[i].is_a?(Hash) && node[i][part.key] == part.value }
      if matches.empty? && part.optional
        throw :done if @type == 'remove'
        return append(node, last ? copy : { part.key => part.value })
      end
      unless matches.length == 1
        raise Error, "exactly one item with #{part.key}=#{part.value} is needed, but there are #{matches.length}"
      end

      step_index(node, matches.first, part.modifiers, last)
    end

    def step_index(node, number, modifiers, last)
      inserts = modifiers & INSERTS.keys
      unless inserts.empty? || (last && @type == 'replace' && modifiers.last == inserts.first && inserts.one?)
        raise Error, "#{inserts.first} is only for the end of a path of replace"
      end

      number += node.length if number.negative?
      number += modifiers.sum { |modifier| MOVES.fetch(modifier, 0) }
      unless number.between?(0, node.length - 1)
        raise Error, "index #{number} is outside of a list of #{node.length}"
      end
      return node.insert(number + INSERTS[inserts.first], copy) unless inserts.empty?
      last ? change(node, number) : node[number]
    end

    def step_after(node)
      raise Error, '- is only for replace' if @type == 'remove'

      append(list(node), copy)
    end

    def append(node, item)
      node << item
      item
    end

    def change(node, key)
      return node[key] = copy if @type == 'replace'

      node.is_a?(Array) ? node.delete_at(key) : node.delete(key)
    end

    # What is created for a missing key depends on the next part.
    def empty_for(part)
      case part
      when Key then {}
      when Index then raise Error, 'a missing list has no index'
      else []
      end
    end

    def list(node)
      node.is_a?(Array) ? node : raise(Error, "a list is needed, but there is #{kind(node)}")
    end

    def kind(node)
      case node
      when Hash then 'a map'
      when Array then 'a list'
      when nil then 'nothing'
      else "'#{node}'"
      end
    end

    def copy = Marshal.load(Marshal.dump(@value))
  end
end
